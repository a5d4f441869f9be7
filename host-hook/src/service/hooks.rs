//! What libvirt's hook and the command line ask.

use tokio::sync::oneshot;

use super::{Input, Service};
use crate::{
    admission, arrival,
    clock::Steps,
    domain::Domain,
    hook::{HookAnswer, HookRequest},
    host::SPARE_BRIDGE,
    inventory::{Vm, parse_uuid},
    report::Report,
    story,
};

impl Service {
    pub(super) async fn hook(&mut self, request: HookRequest, answer: oneshot::Sender<HookAnswer>) {
        tracing::debug!(?request, "called by libvirt");
        let ok = |stdout: String| HookAnswer { exit: 0, stdout, stderr: String::new() };
        match request.operation.as_str() {
            "status" => {
                let status = self.status();
                tokio::task::spawn_local(async move {
                    let _ = answer.send(ok(serde_json::to_string(&status.await).unwrap_or_default()));
                });
            }
            "forecast" if request.sub.is_empty() => self.forecast(request.vm, answer),
            "release" if request.sub.is_empty() => {
                let _ = answer.send(self.release(&request.vm));
            }
            operation => match Domain::parse(&request.xml) {
                Ok(domain) if domain.vnics.is_empty() => drop(answer.send(ok(String::new()))),
                Ok(domain) => self.domain_hook(operation, &request, &domain, answer).await,
                Err(error) => {
                    let why = story(&error);
                    let stderr = format!("lsm-hook: VM {}: {why}\n", request.vm);
                    // Only a migration may be refused; a VM must not fail to start because of us.
                    let exit = u8::from(operation == "migrate");
                    if exit != 0 {
                        self.host.reports.hand_in(Report::refused(&request.vm, None, None, Steps::begun(), why), None);
                    }
                    let _ = answer.send(HookAnswer { exit, stdout: String::new(), stderr });
                }
            },
        }
    }

    async fn domain_hook(
        &mut self,
        operation: &str,
        request: &HookRequest,
        domain: &Domain,
        answer: oneshot::Sender<HookAnswer>,
    ) {
        let vm = Vm::of(domain, &self.host.config);
        if let Some(uuid) = parse_uuid(&domain.uuid) {
            self.question.overtaken(uuid);
        }
        match operation {
            "migrate" => {
                let Some(uuid) = parse_uuid(&domain.uuid) else { return };
                if self.printed.iter().any(|(id, xml)| self.arrivals.contains_key(id) && *xml == request.xml) {
                    tracing::warn!(
                        vm = domain.name,
                        "called again for the same migration; is the hook installed twice?"
                    );
                    let _ = answer.send(HookAnswer::default());
                    return;
                }
                // A migration that failed late may still be going.
                self.tell_arrivals(uuid, || arrival::News::VmGone);
                let (host, inputs) = (self.host.clone(), self.inputs.clone());
                let (domain, xml) = (domain.clone(), request.xml.clone());
                let asked = Steps::begun();
                tokio::task::spawn_local(async move {
                    let mut peer = None;
                    match admission::admit(&host, &domain, &xml, uuid, &mut peer).await {
                        Ok(admission::Verdict::Plug(xml)) => {
                            let _ = answer.send(HookAnswer { exit: 0, stdout: xml, stderr: String::new() });
                        }
                        Ok(admission::Verdict::Move(mut admitted)) => {
                            admitted.answer = Some(answer);
                            let _ = inputs.send(Input::Admitted(admitted));
                        }
                        Err(error) => {
                            let why = story(&error);
                            tracing::warn!(vm = domain.name, error = why, "migration refused");
                            let stderr = format!("lsm-hook: VM {} cannot move here: {why}\n", domain.name);
                            let lan = host.config.offered_lan().map(|(name, _)| name.clone());
                            host.reports.hand_in(Report::refused(&domain.name, peer, lan, asked, why), None);
                            let _ = answer.send(HookAnswer { exit: 1, stdout: String::new(), stderr });
                        }
                    }
                });
                return;
            }
            "prepare" => {
                if let Some(uuid) = parse_uuid(&domain.uuid) {
                    self.tell_arrivals(uuid, || arrival::News::Begun);
                }
                for bridge in domain.interfaces.iter().filter_map(|card| card.bridge.as_deref()) {
                    if (bridge == SPARE_BRIDGE || bridge.starts_with("lsmb"))
                        && let Err(error) = self.host.tunnels.ensure_bridge(bridge).await
                    {
                        tracing::warn!(vm = domain.name, bridge, error = story(&error), "the VM's bridge is missing");
                    }
                }
            }
            "started" | "reconnect" => {
                if let Some(vm) = vm {
                    // What we know of a VM that runs on is truer than its description, which is of its arrival.
                    let known = operation == "reconnect" && self.host.inventory.borrow().get(vm.uuid).is_some();
                    self.started(vm, known);
                }
            }
            "stopped" | "release" => {
                if let Some(uuid) = parse_uuid(&domain.uuid) {
                    self.gone(uuid);
                }
            }
            _ => {}
        }
        let _ = answer.send(HookAnswer::default());
    }
}
