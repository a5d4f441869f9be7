//! The faults, row by row.

use super::{
    Scene, Step,
    strikes::{agent, clients, hosts, libvirt, network, operator},
};
use crate::shell::Result;

/// How the move must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// At its destination, as after an undisturbed move.
    Settled,
    /// Failed, and everything as before it.
    AsBefore,
    /// As [`Ends::AsBefore`], and these words are on the operator's terminal.
    Refused(&'static str),
    /// Either of the first two: libvirt decides.
    Either,
    /// As [`Ends::Settled`], though the source took virsh with it: those who need its tunnel are lost, and no others.
    SourceLost,
}

/// One thing that goes wrong.
#[derive(Debug)]
pub struct Fault {
    pub name: &'static str,
    pub row: &'static str,
    /// When it may strike.
    pub at: &'static [Step],
    pub ends: Ends,
    /// MiB/s of the copy, if the step's own will not do.
    pub pace: Option<&'static str>,
    /// The stage is of no use afterwards.
    pub spoils: bool,
    /// What must be so before the move.
    pub set: fn(&mut Scene) -> Result<()>,
    /// It goes wrong.
    pub strike: fn(&mut Scene) -> Result<()>,
    /// virsh has returned: what must hold while the fault lasts, and its end.
    pub relent: fn(&mut Scene) -> Result<()>,
}

const fn fault(
    row: &'static str,
    name: &'static str,
    at: &'static [Step],
    ends: Ends,
    strike: fn(&mut Scene) -> Result<()>,
) -> Fault {
    Fault { name, row, at, ends, pace: None, spoils: false, set: nothing, strike, relent: nothing }
}

impl Fault {
    const fn set(self, set: fn(&mut Scene) -> Result<()>) -> Fault {
        Fault { set, ..self }
    }

    const fn relent(self, relent: fn(&mut Scene) -> Result<()>) -> Fault {
        Fault { relent, ..self }
    }

    const fn pace(self, pace: &'static str) -> Fault {
        Fault { pace: Some(pace), ..self }
    }

    const fn spoils(self) -> Fault {
        Fault { spoils: true, ..self }
    }
}

#[expect(clippy::unnecessary_wraps, reason = "it stands where others may fail")]
fn nothing(_: &mut Scene) -> Result<()> {
    Ok(())
}

use Ends::{AsBefore, Either, Refused, Settled, SourceLost};
use Step::{Before, Copying, Flipped, Hook, Prepared, Preparing, Resumed, Settling, Stopped};

const ANY: &str = "any step";
const BEFORE: &str = "before arrival";
const STOP: &str = "stop phase";
const AFTER: &str = "after arrival";
const SETTLE: &str = "settle";
const NETWORK: &str = "network";
const OPERATOR: &str = "operator";

const RUNNING: &[Step] = &[Preparing, Prepared, Copying, Flipped, Resumed, Settling];
const AFTER_THE_HOOK: &[Step] = &[Copying, Flipped, Stopped, Resumed, Settling];
/// As long as the source speaks to the guest.
const CHANNEL: &[Step] = &[Preparing, Prepared, Copying, Flipped];

/// All of them.
pub static CATALOGUE: &[Fault] = &[
    fault(ANY, "agent-killed", RUNNING, Settled, agent::killed),
    fault(ANY, "agent-frozen", RUNNING, Settled, agent::frozen),
    fault(ANY, "source-service-killed", AFTER_THE_HOOK, Settled, hosts::source_service_killed),
    fault(ANY, "destination-service-killed", AFTER_THE_HOOK, Settled, hosts::destination_service_killed),
    fault(ANY, "both-services-killed", AFTER_THE_HOOK, Settled, hosts::both_services_killed),
    // The hook waits for it, and libvirt for the hook: who starts again cannot know what was half agreed.
    fault(ANY, "destination-service-killed-in-the-hook", &[Hook], Either, hosts::destination_service_killed),
    fault(ANY, "source-service-killed-in-the-hook", &[Hook, Preparing], Either, hosts::source_service_killed),
    fault(ANY, "channel-reset", CHANNEL, Settled, agent::channel_reset).set(agent::channel_proxy),
    fault(ANY, "channel-silent", CHANNEL, Settled, agent::channel_silent).set(agent::channel_proxy),
    fault(ANY, "channel-slow", CHANNEL, Settled, agent::channel_slow).set(agent::channel_proxy),
    fault(ANY, "peers-cut", AFTER_THE_HOOK, Settled, hosts::peers_cut),
    fault(ANY, "peers-silent", AFTER_THE_HOOK, Settled, hosts::peers_silent),
    fault(ANY, "peers-silent-past-the-lease", &[Copying], Settled, hosts::peers_silent_long).pace("3"),
    fault(ANY, "peers-slow", AFTER_THE_HOOK, Settled, hosts::peers_slow),
    fault(BEFORE, "domjobabort", &[Prepared, Copying, Flipped], AsBefore, libvirt::abort),
    fault(BEFORE, "destination-qemu-killed", &[Copying, Flipped], AsBefore, libvirt::kill_destination_qemu),
    fault(BEFORE, "destination-host-dies", &[Copying, Flipped], AsBefore, hosts::destination_dies).spoils(),
    fault(BEFORE, "hook-refuses-prepare", &[Before], Refused("told to refuse"), libvirt::refuse_prepare)
        .relent(libvirt::refuse_nothing),
    fault(BEFORE, "hook-refuses-started", &[Before], Refused("told to refuse"), libvirt::refuse_started)
        .relent(libvirt::refuse_nothing),
    fault(BEFORE, "disk-full", &[Before], Settled, hosts::disk_full).relent(hosts::disk_free),
    fault(BEFORE, "never-converges", &[Copying], AsBefore, libvirt::never_converges)
        .set(agent::dirty_memory)
        .relent(agent::clean_memory)
        .pace("4"),
    fault(STOP, "abort-in-the-stop", &[Stopped], AsBefore, libvirt::abort_stopped),
    fault(STOP, "destination-qemu-killed-in-the-stop", &[Stopped], AsBefore, libvirt::kill_stopped),
    fault(STOP, "wan-cut-in-the-stop", &[Stopped], AsBefore, libvirt::cut_stopped),
    fault(AFTER, "wan-cut", &[Resumed], Settled, network::wan_cut),
    fault(AFTER, "new-path-dead", &[Resumed], Settled, network::new_path_dead),
    fault(AFTER, "source-host-dies", &[Settling], SourceLost, hosts::source_dies)
        .set(clients::plain)
        .relent(hosts::its_tunnel_goes)
        .spoils(),
    fault(SETTLE, "client-vanishes", &[Copying], Settled, clients::vanish)
        .set(clients::another)
        .relent(clients::vanished_holds_the_old_path),
    fault(SETTLE, "client-never-joins", &[Resumed], Settled, clients::nothing_more)
        .set(clients::unable)
        .relent(clients::unable_keeps_the_tunnel),
    fault(SETTLE, "rm-addr-lost", &[Before], Settled, network::lose_rm_addr).relent(network::until_settled),
    fault(SETTLE, "tunnel-peer-gone", &[Settling], Settled, hosts::source_service_away),
    fault(NETWORK, "add-addr-lost-30", &[Before], Settled, network::lose_add_addr),
    fault(NETWORK, "joins-blocked", &[Before], Settled, network::block_joins).relent(network::joins_are_missed),
    fault(NETWORK, "option-stripped", &[Before], Settled, network::strip_option).relent(network::stripped_is_legacy),
    fault(NETWORK, "gateway-silent-at-first", &[Hook], Settled, network::gateway_silent),
    fault(NETWORK, "announced-too-early", &[Hook], Settled, network::unreachable_at_first),
    fault(NETWORK, "stale-arp", &[Resumed], Settled, network::stale_arp),
    fault(NETWORK, "mtu-shrinks", &[Copying, Resumed], Settled, network::shrink_mtu),
    fault(NETWORK, "loss-2", &[Before], Settled, network::lose_some),
    fault(NETWORK, "reordering", &[Before], Settled, network::reorder),
    fault(NETWORK, "repetition", &[Before], Settled, network::repeat),
    fault(OPERATOR, "back-before-settled", &[Settling], Settled, operator::back_at_once).set(clients::plain),
    fault(OPERATOR, "hook-twice", &[Before], Settled, operator::hook_twice).relent(operator::hook_once),
    fault(OPERATOR, "newer-agent", &[Before], Settled, agent::newer),
    fault(OPERATOR, "newer-host", &[Before], Settled, agent::older_than_its_host),
    fault(OPERATOR, "no-common-version", &[Before], Settled, agent::of_no_common_version)
        .relent(agent::was_not_understood),
    fault(OPERATOR, "config-changed", &[Copying, Resumed], Settled, operator::change_config)
        .relent(operator::restore_config),
];
