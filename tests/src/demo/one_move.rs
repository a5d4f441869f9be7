//! One move, watched.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    thread,
    time::Duration,
};

use super::{Live, Play, SETTLE, lab, timeline};
use crate::{
    capture::{Capture, Frame, Mac, Packet, Recording, SYN, Scope, Subtype},
    measure::{
        Flow, Move, Tap, Window, datagram_gap, datagram_loss, joins, longest_gap_of_all, lost_frames, milliseconds,
        on_direct, rtt_median_ms, rtt_series, throughput, to_client, to_vm, usage,
    },
    report::{ArrivalToDirect, Connections, Curves, FLIP, GAP_BEGINS, GAP_ENDS, Legacy, Mark, MoveReport, Step},
    shell::{LabError, Result},
    site::Site,
    topology::CLIENT_INTERFACE,
    traffic::{Bulk, Log, Nanos, Subflow, subflows},
};

/// A bulk transfer: a few round trips of slow start over 70 ms, and then some.
const BULK: Duration = Duration::from_secs(2);
/// Paced traffic before and after: enough for a median of the round trips.
const QUIET: Duration = Duration::from_secs(2);
/// A second, in nanoseconds.
const SECOND: Nanos = 1_000_000_000;

/// What was seen of one move.
pub(super) struct Seen {
    pub(super) report: MoveReport,
    pub(super) curves: Curves,
    pub(super) resumed: Nanos,
}

/// The captures of one move.
struct Captures {
    client: Capture,
    from: Capture,
    to: Capture,
    gateway_from: Capture,
    gateway_to: Capture,
}

pub(super) fn one_move(play: &mut Play<'_>, number: usize) -> Result<Seen> {
    let from = play.stage.guest.site()?.clone();
    let to = other(play, &from);
    let live = play.live;
    live.say(&format!("move {number}: {} → {}", from.name(), to.name()));
    let bulk_before = play.client.bulk(BULK).map_err(lab)?;
    let legacy = play.legacy()?;
    let captures = Captures::start(play, &from, &to)?;
    let taps_from = taps(&from)?;
    thread::sleep(QUIET);

    let started = timeline::now();
    live.say(&format!("$ virsh migrate --live vm qemu+tcp://{}/system", to.name()));
    play.stage.migrate(to.name())?;
    let migrated = timeline::now();
    live.say("virsh is done");
    let stopped = timeline::qemu_event(&from, "STOP", started);
    let resumed = timeline::qemu_event(&to, "RESUME", started)
        .ok_or_else(|| LabError::Other("QEMU at the destination did not say RESUME".into()))?;
    let taps_to = taps(&to)?;
    thread::sleep(QUIET);
    let calm = timeline::now();
    thread::sleep(QUIET);
    let known = subflows(play.stage.topology.ns("client").command("ss")).map_err(lab)?;
    let after = timeline::now();
    let bulk_after = play.client.bulk(BULK).map_err(lab)?;
    let legacy = legacy.stop().map_err(lab)?;
    let settled =
        if play.options.mode.direct() { play.stage.settled(SETTLE).is_ok().then(timeline::now) } else { None };
    let log = play.client.take_log().map_err(lab)?;
    let watched = captures.stop(live);

    let seen = Watched {
        play,
        from: &from,
        to: &to,
        started,
        migrated,
        stopped,
        resumed,
        calm,
        after,
        settled,
        known,
        taps_from,
        taps_to,
        log: &log,
        legacy: &legacy,
        bulks: [bulk_before, bulk_after],
        recordings: watched,
    };
    let (report, curves, new) = seen.report()?;
    live.say(&format!(
        "pause {}, longest gap {}, direct path {} after arrival",
        ms(report.pause_ms),
        ms(report.longest_gap_ms),
        ms(report.arrival_to_direct_ms.to_client)
    ));
    if settled.is_some() && !new.is_empty() {
        play.addresses = new;
    }
    play.log.extend(log);
    Ok(Seen { report, curves, resumed })
}

fn other(play: &Play<'_>, from: &Arc<Site>) -> Arc<Site> {
    let found = play.stage.sites.iter().find(|site| site.name() != from.name());
    found.unwrap_or(from).clone()
}

fn ms(value: Option<f64>) -> String {
    value.map_or_else(|| "never".into(), |value| format!("{value:.1} ms"))
}

/// The VM's taps on a host, by MAC.
fn taps(site: &Site) -> Result<HashMap<Mac, String>> {
    let listing = site.virsh(&["domiflist", "vm"])?;
    let mut taps = HashMap::new();
    for line in listing.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [tap, _, _, _, mac] = words[..]
            && let Ok(mac) = mac.parse::<lsm_protocol::Mac>()
        {
            taps.insert(mac.0, tap.to_owned());
        }
    }
    Ok(taps)
}

impl Captures {
    fn start(play: &Play<'_>, from: &Site, to: &Site) -> Result<Captures> {
        let topology = &play.stage.topology;
        let domain = play.stage.guest.domain();
        let macs: Vec<Mac> = [&domain.mac_a, &domain.mac_b]
            .into_iter()
            .filter_map(|mac| mac.parse::<lsm_protocol::Mac>().ok())
            .map(|mac| mac.0)
            .collect();
        let start = |ns: &str, interface: Option<&str>, macs: &[Mac]| {
            let scope = Scope {
                namespace: Some(topology.ns(ns).path()),
                interface: interface.map(str::to_owned),
                macs: macs.to_vec(),
                everything: false,
            };
            Capture::start(scope).map_err(|error| LabError::Other(error.to_string()))
        };
        Ok(Captures {
            client: start("client", Some(CLIENT_INTERFACE), &[])?,
            from: start(from.name(), None, &macs)?,
            to: start(to.name(), None, &macs)?,
            gateway_from: start(&format!("gw-{}", from.name()), Some("lan"), &[])?,
            gateway_to: start(&format!("gw-{}", to.name()), Some("lan"), &[])?,
        })
    }

    fn stop(self, live: &Live) -> Recordings {
        let whole = |place: &str, capture: Capture| {
            let recording = capture.stop();
            if recording.dropped > 0 {
                live.say(&format!("the capture {place} missed {} frames: they count as lost", recording.dropped));
            }
            recording
        };
        Recordings {
            client: whole("at the client", self.client),
            from: whole("on the source", self.from),
            to: whole("on the destination", self.to),
            gateway_from: whole("in the old LAN", self.gateway_from),
            gateway_to: whole("in the new LAN", self.gateway_to),
        }
    }
}

struct Recordings {
    client: Recording,
    from: Recording,
    to: Recording,
    gateway_from: Recording,
    gateway_to: Recording,
}

/// Everything that was seen, before it is judged.
struct Watched<'a, 'b> {
    play: &'a Play<'b>,
    from: &'a Site,
    to: &'a Site,
    started: Nanos,
    migrated: Nanos,
    stopped: Option<Nanos>,
    resumed: Nanos,
    /// Paced traffic only, well after the switch: from here ...
    calm: Nanos,
    /// ... to here.
    after: Nanos,
    settled: Option<Nanos>,
    known: Vec<Subflow>,
    taps_from: HashMap<Mac, String>,
    taps_to: HashMap<Mac, String>,
    log: &'a Log,
    legacy: &'a Log,
    bulks: [Bulk; 2],
    recordings: Recordings,
}

impl Watched<'_, '_> {
    fn report(&self) -> Result<(MoveReport, Curves, Vec<IpAddr>)> {
        let at_client: Vec<&Frame> = self.recordings.client.frames.iter().collect();
        let new = self.new_addresses(&at_client);
        let during = Window { from: self.started, until: self.resumed + 2 * SECOND };
        let joined = joins(&at_client, &new);
        let gaps = longest_gap_of_all(self.log, during);
        let [before, after] = [self.started - SECOND * 3 / 2, self.calm]
            .map(|from| Window { from, until: if from == self.calm { self.after } else { self.started } });
        let direct = self.direct(&at_client, &new);
        let during_it: Vec<&Frame> = at_client.iter().copied().filter(|frame| frame.at >= self.started).collect();
        let first_on_new = first_payload(&during_it, &new);
        let last_join = joined.values().copied().filter(|at| *at < self.resumed).max();
        let since = |at: Nanos| milliseconds(at.saturating_sub(self.started));
        let mut steps = vec![Step { name: "migrate".into(), at_ms: 0.0 }];
        let longest = gaps.iter().map(|(_, gap)| gap).max_by_key(|gap| gap.length);
        for (name, at) in [
            (GAP_BEGINS, longest.map(|gap| gap.from)),
            (GAP_ENDS, longest.map(|gap| gap.from + gap.length)),
            ("prepared", last_join),
            ("paused", self.stopped),
            ("arrived", Some(self.resumed)),
            ("first frame of the VM", self.first_frame()),
            (FLIP, self.flip()),
            ("switched", first_on_new),
            ("virsh done", Some(self.migrated)),
            ("settled", self.settled),
        ] {
            steps.extend(at.map(|at| Step { name: name.into(), at_ms: since(at) }));
        }
        steps.sort_by(|a, b| a.at_ms.total_cmp(&b.at_ms));
        let udp = datagram_loss(&self.legacy.datagrams, Window { from: 0, until: self.after });
        let survived = self.legacy.plain().filter(|connection| connection.survived(self.resumed)).count();
        let report = MoveReport {
            from: self.from.name().into(),
            to: self.to.name().into(),
            hooks: [self.from, self.to].iter().flat_map(|site| timeline::hook_calls(site, self.started)).collect(),
            connections: Connections {
                total: self.play.connections.len() as u64,
                joined_before_arrival: self.tokens(&joined, self.resumed),
                survived: 0, // known at the end of the demo
                on_direct_path: self.on_direct(&at_client, &new),
            },
            legacy: Legacy { total: self.legacy.plain().count() as u64, survived: survived as u64 },
            bytes_wrong: self.log.bytes_wrong().saturating_sub(self.play.log.bytes_wrong()) + self.legacy.bytes_wrong(),
            frames_lost: self.frames_lost(&new),
            pause_ms: self.stopped.map(|at| milliseconds(self.resumed.saturating_sub(at))),
            longest_gap_ms: longest.map(|gap| milliseconds(gap.length)),
            udp_gap_ms: datagram_gap(self.legacy, during).map(|gap| milliseconds(gap.length)),
            udp_lost: udp.lost,
            arrival_to_direct_ms: direct,
            rtt_before_ms: rtt_median_ms(self.log, before),
            rtt_after_ms: rtt_median_ms(self.log, after),
            mbit_before: Some(self.bulks[0].mbit_steady),
            mbit_after: Some(self.bulks[1].mbit_steady),
            tunnels_left: self.tunnels_left()?,
            steps: steps.clone(),
        };
        let shown = Window { from: self.started - 2 * SECOND, until: self.after };
        let curves = Curves {
            from_ms: -2_000.0,
            until_ms: since(self.after),
            throughput: self.relative(throughput(self.log, shown, SECOND / 20)),
            rtt: self.relative(rtt_series(self.log, shown)),
            marks: steps
                .into_iter()
                .filter(|step| {
                    !matches!(
                        step.name.as_str(),
                        "migrate" | "first frame of the VM" | FLIP | "virsh done" | GAP_BEGINS | GAP_ENDS
                    )
                })
                .map(|Step { name, at_ms }| Mark { name, at_ms })
                .collect(),
            pause_ms: self.stopped.map(|at| (since(at), since(self.resumed))),
            gaps: gaps.iter().map(|(id, gap)| (format!("connection {id}"), milliseconds(gap.length))).collect(),
        };
        Ok((report, curves, new))
    }

    fn relative(&self, series: Vec<(Nanos, f64)>) -> Vec<(f64, f64)> {
        let at = |at: Nanos| (at as f64 - self.started as f64) / 1e6;
        series.into_iter().map(|(when, value)| (at(when), value)).collect()
    }

    /// The VM's addresses of the LAN it came to, as far as anybody joined them; IPv4 first. What else is on its way may be
    /// left of an earlier move.
    fn new_addresses(&self, at_client: &[&Frame]) -> Vec<IpAddr> {
        let plan = self.play.stage.topology.site(self.to.name());
        let of_lan = |ip: &IpAddr| match ip {
            IpAddr::V4(ip) => ip.octets()[..3] == plan.gateway.octets()[..3],
            IpAddr::V6(ip) => ip.octets()[..8] == plan.gateway6().octets()[..8],
        };
        let ends = at_client.iter().filter(|frame| frame.at >= self.started).filter_map(|frame| match &frame.packet {
            Packet::Tcp(segment) if segment.has(SYN) && segment.mptcp.has(Subtype::Join) => {
                Some([segment.source.ip(), segment.destination.ip()])
            }
            _ => None,
        });
        ends.flatten().filter(of_lan).collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn direct(&self, at_client: &[&Frame], new: &[IpAddr]) -> ArrivalToDirect {
        let mac = self.new_mac();
        let on = |recording: &Recording, taps: &HashMap<Mac, String>| -> Vec<Frame> {
            mac.and_then(|mac| taps.get(&mac)).map(|tap| recording.on(tap).cloned().collect()).unwrap_or_default()
        };
        let (source, destination) =
            (on(&self.recordings.from, &self.taps_from), on(&self.recordings.to, &self.taps_to));
        let (source, destination): (Vec<&Frame>, Vec<&Frame>) = (source.iter().collect(), destination.iter().collect());
        let client = self.play.stage.topology.client();
        let of = Move {
            client: &client,
            new,
            resumed: self.resumed,
            at_client,
            source_tap: &source,
            destination_tap: &destination,
        };
        ArrivalToDirect { to_client: to_client(&of).map(milliseconds), to_vm: to_vm(&of).map(milliseconds) }
    }

    /// The first frame that the guest itself sent after arrival: what happened before is QEMU's work, not the agent's.
    fn first_frame(&self) -> Option<Nanos> {
        let frames = self.taps_to.values().flat_map(|tap| self.recordings.to.on(tap));
        let own = frames.filter(|frame| {
            let by_qemu = matches!(&frame.packet, Packet::Arp(arp) if arp.reverse);
            !frame.outgoing && frame.at >= self.resumed && !by_qemu
        });
        own.map(|frame| frame.at).min()
    }

    /// The first frame that only the agent can have caused: a change of a path's priority. After an arrival that it was not
    /// told of before, this is the first that is seen of it at all.
    fn flip(&self) -> Option<Nanos> {
        let at = |recording: &Recording, taps: &HashMap<Mac, String>| {
            let frames = taps.values().flat_map(|tap| recording.on(tap));
            let own = frames.filter(|frame| {
                let flip = matches!(&frame.packet, Packet::Tcp(segment) if segment.mptcp.has(Subtype::Priority));
                !frame.outgoing && frame.at >= self.started && flip
            });
            own.map(|frame| frame.at).min()
        };
        let at_source = at(&self.recordings.from, &self.taps_from);
        at_source.into_iter().chain(at(&self.recordings.to, &self.taps_to)).min()
    }

    /// The MAC of the vNIC in the LAN that the VM came to: the one whose tap is in that LAN's bridge.
    fn new_mac(&self) -> Option<Mac> {
        self.macs().map(|(_, new)| new)
    }

    /// Old and new.
    fn macs(&self) -> Option<(Mac, Mac)> {
        let domain = self.play.stage.guest.domain();
        let [a, b] = [&domain.mac_a, &domain.mac_b].map(|mac| mac.parse::<lsm_protocol::Mac>().ok());
        let (a, b) = (a?.0, b?.0);
        let home = self.from.name() == self.play.stage.sites[0].name();
        Some(if home { (a, b) } else { (b, a) })
    }

    fn tokens(&self, joined: &HashMap<Flow, Nanos>, before: Nanos) -> u64 {
        let has = |token: u32| {
            self.known.iter().any(|subflow| {
                let flow = Flow { client: subflow.local, vm: subflow.remote };
                subflow.token == Some(token) && joined.get(&flow).is_some_and(|at| *at < before)
            })
        };
        self.play.connections.iter().filter(|(_, token)| has(*token)).count() as u64
    }

    fn on_direct(&self, at_client: &[&Frame], new: &[IpAddr]) -> u64 {
        let used = usage(at_client, Window { from: self.calm, until: self.after });
        let direct = |token: u32| on_direct(token, &self.known, &used, new) == Some(true);
        self.play.connections.iter().filter(|(_, token)| direct(*token)).count() as u64
    }

    /// Frames that entered either LAN for an address that the VM has, and reached no tap that was read.
    fn frames_lost(&self, joined: &[IpAddr]) -> u64 {
        let Some((old, new)) = self.macs() else { return 0 };
        let window = Window { from: self.started, until: self.resumed + SECOND };
        let has = |address: IpAddr| self.play.addresses.contains(&address) || joined.contains(&address);
        let lost = |mac: Mac, gateway: &Recording| {
            let tap = |recording: &Recording, taps: &HashMap<Mac, String>| -> Vec<Frame> {
                taps.get(&mac).map(|tap| recording.on(tap).cloned().collect()).unwrap_or_default()
            };
            let (source, destination) =
                (tap(&self.recordings.from, &self.taps_from), tap(&self.recordings.to, &self.taps_to));
            let (source, destination): (Vec<&Frame>, Vec<&Frame>) =
                (source.iter().collect(), destination.iter().collect());
            let taps = [Tap { frames: &source, until: self.stopped }, Tap { frames: &destination, until: None }];
            let entered: Vec<&Frame> = gateway.frames.iter().collect();
            let mut lost = lost_frames(&entered, &taps, mac, window);
            lost.retain(|frame| match &frame.packet {
                Packet::Tcp(segment) => has(segment.destination.ip()),
                Packet::Udp(datagram) => has(datagram.destination.ip()),
                _ => true,
            });
            // Where it happened says which step was late.
            for frame in lost.iter().take(10) {
                let since = |moment: Nanos| (frame.at as f64 - moment as f64) / 1e6;
                self.play.live.say(&format!(
                    "lost a frame for {mac:02x?} that entered its LAN {:.2} ms after STOP, {:.2} ms after RESUME: {:?}",
                    self.stopped.map_or(f64::NAN, since),
                    since(self.resumed),
                    frame.packet
                ));
            }
            lost.len() as u64
        };
        lost(old, &self.recordings.gateway_from) + lost(new, &self.recordings.gateway_to)
    }

    /// Tunnels that stand though nothing needs them. Where the tunnel is the only path, one end on each host is needed.
    fn tunnels_left(&self) -> Result<u64> {
        let standing = self.play.stage.tunnels(self.from.name())? + self.play.stage.tunnels(self.to.name())?;
        let needed = if self.play.options.mode.direct() { 0 } else { 2 };
        Ok(standing.saturating_sub(needed) as u64)
    }
}

fn first_payload(at_client: &[&Frame], new: &[IpAddr]) -> Option<Nanos> {
    at_client.iter().find_map(|frame| match &frame.packet {
        Packet::Tcp(segment)
            if segment.payload > 0
                && [segment.source, segment.destination].iter().any(|end| new.contains(&end.ip())) =>
        {
            Some(frame.at)
        }
        _ => None,
    })
}
