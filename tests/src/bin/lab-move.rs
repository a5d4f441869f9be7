use lsm_tests::{
    shell::chain,
    stage::{Stage, StageOptions},
};
use std::time::Duration;
fn main() {
    let policy = std::env::args().nth(1).unwrap_or_default().replace(';', "\n");
    let stage = Stage::set(&StageOptions { policy, ..Default::default() }, |s| println!("{s}")).unwrap_or_else(|e| {
        println!("{}", chain(&e));
        std::process::exit(1)
    });
    println!(
        "{}",
        stage.guest.must("cat /var/log/lsm-guest.log; lsm-guest status; ip -br addr").unwrap_or_else(|e| chain(&e))
    );
    if let Ok(cs) = std::env::var("CMDS") {
        for c in cs.split('|') {
            println!(
                "# {c}\n{}",
                stage
                    .guest
                    .exec_within(c, Duration::from_secs(10))
                    .map_or_else(|e| chain(&e), |o| format!("{o:?}").replace("\\n", "\n"))
            );
        }
        return;
    }
    let r = stage.migrate("dallas");
    println!("migrate: {:?}", r.map_err(|e| chain(&e)));
    let s = stage.settled(Duration::from_secs(15));
    println!("settled: {:?}", s.map_err(|e| chain(&e)));
    for site in ["montreal", "dallas"] {
        println!("== {site}\n{}", stage.log(site));
        println!("{}", std::fs::read_to_string(stage.site(site).dir().join("monitor.log")).unwrap_or_default());
        println!("{}", stage.status(site).map_or_else(|e| chain(&e), |v| v.to_string()));
    }
    for c in [
        "cat /var/log/lsm-guest.log",
        "ip -br addr; ip rule; ip route; ip mptcp endpoint; ps",
        "timeout 5 lsm-guest status",
    ] {
        println!(
            "# {c}\n{}",
            stage
                .guest
                .exec_within(c, Duration::from_secs(10))
                .map_or_else(|e| chain(&e), |o| format!("{o:?}").replace("\\n", "\n"))
        );
    }
    println!("{}", stage.guest.console());
    println!("{}", stage.guest.kernel_died());
}
