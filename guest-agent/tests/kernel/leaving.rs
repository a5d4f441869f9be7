//! The old path is left although its vNIC is not there any more, and the next move knows nothing of the last.

use std::net::IpAddr;

use lsm_guest::{kernel::Kernel, path, record::Record};
use lsm_protocol::{Drain, Given, Mac, MigrationId, Prepare};

use crate::place::{alone, run, runtime};

fn mac(number: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0xaa, 0, number])
}

/// From vNIC `number` to the one after it.
fn plan(number: u8) -> Prepare {
    let at = |last: u8| IpAddr::from([198, 51, 100 + number, last]);
    Prepare {
        migration: MigrationId([number; 16]),
        old: mac(number),
        new: mac(number + 1),
        lan: "dallas".to_owned(),
        addressing: [Given { address: at(1), prefix_len: 24, gateway: at(2) }].into_iter().collect(),
        mtu: 1500,
        arrived: false,
        drain: Drain::UntilIdle,
        lease: 60_000,
    }
}

#[test]
fn an_old_vnic_that_is_gone_is_left_all_the_same() {
    alone(|| {
        for number in 1..4 {
            run(&format!("ip link add name v{number} address {} type veth peer name g{number}", mac(number)));
            run(&format!("ip link set dev g{number} up"));
        }
        run("ip link set dev v1 up");
        run("ip address add 192.0.2.1/24 dev v1");
        run("ip route add default via 192.0.2.2");
        let directory = std::env::temp_dir().join(format!("lsm-leaving-{}", std::process::id()));
        runtime().block_on(async {
            let (mut kernel, mut record) = (Kernel::open().unwrap(), Record::open(&directory).unwrap());
            path::raise(&mut kernel, &mut record, &plan(1)).await.unwrap();
            let first = record.paths();
            run("ip link del dev v1");
            path::release_old(&mut kernel, &mut record).await.unwrap();
            assert_eq!((record.paths(), record.changes.len()), (None, 0));
            assert!(!run("ip rule").contains("192.0.2.1"));

            record.set_paths(first); // as after an end that failed
            run("ip route add default via 198.51.101.2");
            path::raise(&mut kernel, &mut record, &plan(2)).await.unwrap();
            let old = record.paths().unwrap().old;
            assert_eq!((old.mac, old.addresses().to_string().as_str()), (mac(2), "198.51.101.1"));
        });
        std::fs::remove_dir_all(&directory).unwrap();
    });
}

#[test]
fn a_spare_that_is_still_up_is_set_down_or_taken_for_the_way_back() {
    alone(|| {
        for number in 1..3 {
            run(&format!("ip link add name v{number} address {} type veth peer name g{number}", mac(number)));
            run(&format!("ip link set dev g{number} up"));
        }
        run("ip link set dev v1 up");
        run("ip address add 198.51.100.1/24 dev v1");
        run("ip route add default via 198.51.100.2");
        let is_up = || run("ip -o link show dev v1").contains(",UP");
        let directory = std::env::temp_dir().join(format!("lsm-left-up-{}", std::process::id()));
        runtime().block_on(async {
            let (mut kernel, mut record) = (Kernel::open().unwrap(), Record::open(&directory).unwrap());
            path::raise(&mut kernel, &mut record, &plan(1)).await.unwrap();
            path::take_over(&mut kernel, &mut record).await.unwrap();
            path::release_old(&mut kernel, &mut record).await.unwrap();
            assert!(is_up(), "it may not be set down yet");

            let back = Prepare { old: mac(2), new: mac(1), ..plan(0) };
            path::raise(&mut kernel, &mut record, &back).await.unwrap();
            path::set_spare_down(&mut kernel, &mut record).await.unwrap();
            assert!(is_up(), "it is no spare any more");
            path::lower(&mut kernel, &mut record).await.unwrap();
            assert!(!is_up(), "as a move finds a spare");

            run("ip link set dev v1 up");
            record.left_up = Some(mac(1));
            path::set_spare_down(&mut kernel, &mut record).await.unwrap();
            assert_eq!((is_up(), record.left_up), (false, None));
        });
        std::fs::remove_dir_all(&directory).unwrap();
    });
}
