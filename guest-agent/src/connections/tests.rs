use super::*;
use crate::netlink::HEADER;

fn row(family: i32, state: u8, flags: Option<u32>) -> Vec<u8> {
    let mut fixed = vec![0; ROW];
    fixed[..2].copy_from_slice(&[family as u8, state]);
    fixed[4..6].copy_from_slice(&80u16.to_be_bytes());
    fixed[6..8].copy_from_slice(&4000u16.to_be_bytes());
    let (at, mapped) = if family == libc::AF_INET { (0, &[][..]) } else { (12, &[0xff, 0xff][..]) };
    fixed[8 + at..12 + at].copy_from_slice(&[192, 0, 2, 1]);
    fixed[24 + at..28 + at].copy_from_slice(&[192, 0, 2, 9]);
    fixed[8 + at - mapped.len()..8 + at].copy_from_slice(mapped);
    fixed[24 + at - mapped.len()..24 + at].copy_from_slice(mapped);
    let mut info = vec![0; 152];
    info[52..56].copy_from_slice(&40u32.to_ne_bytes());
    info[68..72].copy_from_slice(&1500u32.to_ne_bytes());
    let mut message = Message::new(20, 0).raw(&fixed).attribute(ATTR_INFO, &info);
    if let Some(flags) = flags {
        message = message.nest(ATTR_ULP_INFO, |m| {
            m.attribute(1, b"mptcp\0")
                .nest(3, |m| m.attribute(2, &7u32.to_ne_bytes()).attribute(8, &flags.to_ne_bytes()).attribute(10, &[3]))
        });
    }
    message.seal(0)[HEADER..].to_vec()
}

#[test]
fn the_port_is_the_one_that_the_connection_began_with() {
    let read = |subflows: u8, flags: u32| {
        let mut fixed = vec![0; ROW];
        fixed[..2].copy_from_slice(&[libc::AF_INET as u8, ESTABLISHED]);
        fixed[4..6].copy_from_slice(&80u16.to_be_bytes());
        let mut info = vec![0; 16];
        (info[0], info[3]) = (subflows, 8);
        info[8..12].copy_from_slice(&flags.to_ne_bytes());
        info[12..].copy_from_slice(&7u32.to_ne_bytes());
        read_whole(&Message::new(20, 0).raw(&fixed).attribute(ATTR_INFO, &info).seal(0)[HEADER..])
    };
    let is = |fell_back, full| Some((7, Whole { port: 80, fell_back, full }));
    assert_eq!([read(1, 0), read(8, 0), read(8, 1)], [is(false, false), is(false, true), is(true, false)]);
    assert_eq!(read_whole(&row(libc::AF_INET, ESTABLISHED, None)[..ROW]), None);
}

fn sorted(rows: &[Vec<u8>], fallen: &[u32]) -> Snapshot {
    let fell_back = Whole { port: 80, fell_back: true, full: false };
    let wholes = fallen.iter().map(|token| (*token, fell_back)).collect();
    let mut sorter = Sorter { wholes, ..Sorter::default() };
    rows.iter().filter_map(|row| read_row(row)).for_each(|row| sorter.sort(row));
    sorter.snapshot
}

#[test]
fn rows_are_told_apart() {
    let initial = FLAG_MCAP_REM | FLAG_MCAP_LOC | FLAG_CONNECTED;
    let joined = FLAG_JOIN_REM | FLAG_BKUP_LOC | FLAG_CONNECTED;
    let rows = [
        row(libc::AF_INET, ESTABLISHED, Some(initial)),
        row(libc::AF_INET6, ESTABLISHED, Some(joined)),
        row(libc::AF_INET, ESTABLISHED, None),
        row(libc::AF_INET, ESTABLISHED, Some(FLAG_MCAP_LOC | FLAG_CONNECTED)), // asked, not answered
        row(libc::AF_INET, SYN_SENT, None),
        row(libc::AF_INET, LISTEN, Some(0)),
    ];
    let snapshot = sorted(&rows, &[]);
    let [connection] = &snapshot.connections[..] else { panic!("{snapshot:?}") };
    assert_eq!((connection.token, connection.opened_by_us), (7, Some(true)));
    let [first, second] = connection.subflows[..] else { panic!("{snapshot:?}") };
    assert_eq!(first.local, "192.0.2.1:80".parse().unwrap());
    assert_eq!(second.remote, "192.0.2.9:4000".parse().unwrap(), "a mapped address is shown as IPv4");
    assert_eq!((first.initial, first.backup, first.opened_by_us, first.rtt_us), (true, false, true, 1500));
    assert_eq!((first.silent_ms, snapshot.legacy[0].silent_ms), (40, 40));
    assert_eq!((second.initial, second.backup, second.opened_by_us, second.local_id), (false, true, false, 3));
    assert_eq!((snapshot.legacy.len(), snapshot.listeners.len()), (2, 1));
    assert_eq!(snapshot.legacy[0].obstacle, Obstacle::Plain);
    assert_eq!(snapshot.legacy[1].obstacle, Obstacle::Unanswered);

    let fell = sorted(&rows, &[7]);
    assert_eq!((fell.connections.len(), fell.legacy.len()), (0, 4));
    assert_eq!(fell.legacy[0].obstacle, Obstacle::FellBack);
}

#[test]
fn what_was_opened_here_is_known_after_its_initial_subflow() {
    let mut memory = OpenedHere::default();
    let mut origin = |flags: &[u32]| {
        let rows: Vec<_> = flags.iter().map(|flags| row(libc::AF_INET, ESTABLISHED, Some(*flags))).collect();
        let mut snapshot = sorted(&rows, &[]);
        memory.recall(&mut snapshot.connections);
        snapshot.connections.first().map(|connection| connection.opened_by_us)
    };
    let joined = FLAG_JOIN_REM | FLAG_CONNECTED;
    let both = FLAG_MCAP_REM | FLAG_CONNECTED;
    assert_eq!(origin(&[joined]), Some(None), "never seen before it moved");
    assert_eq!(origin(&[both | FLAG_MCAP_LOC, joined]), Some(Some(true)));
    assert_eq!(origin(&[joined]), Some(Some(true)), "moved");
    assert_eq!(origin(&[]), None);
    assert_eq!(origin(&[joined]), Some(None), "another connection of the same token");
    assert_eq!(origin(&[both]), Some(Some(false)));
    assert_eq!(origin(&[joined]), Some(None), "its client may have taken the address all the same");
}

#[test]
fn a_plain_connection_is_there_until_its_last_byte_is_acknowledged() {
    let rows = [LAST_ACK, CLOSING, CLOSE_WAIT].map(|state| row(libc::AF_INET, state, None));
    let states: Vec<State> = sorted(&rows, &[]).legacy.iter().map(|legacy| legacy.state).collect();
    assert_eq!(states, [State::Closing, State::Closing, State::HalfClosedByPeer]);
    let subflow = row(libc::AF_INET, LAST_ACK, Some(FLAG_MCAP_REM | FLAG_MCAP_LOC | FLAG_CONNECTED));
    assert!(sorted(&[subflow], &[]).connections.is_empty());
}

#[test]
fn no_cut_of_a_row_is_a_panic_or_another_row() {
    let whole = row(libc::AF_INET6, ESTABLISHED, Some(FLAG_MCAP_REM));
    for length in 0..ROW {
        assert!(read_row(&whole[..length]).is_none());
    }
    for length in ROW..whole.len() {
        let _ = read_row(&whole[..length]);
        let _ = read_whole(&whole[..length]);
    }
}
