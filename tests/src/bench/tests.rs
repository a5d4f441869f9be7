#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use super::{
    plot::{Curve, Plot},
    *,
};

fn options(name: &str) -> BenchOptions {
    let directory = std::env::temp_dir().join(format!("lsm-bench-{name}-{}", std::process::id()));
    BenchOptions {
        only: Some("figure-12".into()),
        quick: false,
        until: None,
        fresh: false,
        kept: directory.join("kept"),
        results: directory,
    }
}

#[test]
fn what_was_measured_is_not_measured_again_and_what_was_not_is_said() {
    let options = options("again");
    let mut said = Vec::new();
    run(&options, &mut |what, _| said.push(what.to_owned())).unwrap();
    assert_eq!(said[0], "figure-12 [--------------------] 0/10: 100");
    let page = fs::read_to_string(options.results.join("RESULTS.md")).unwrap();
    assert!(page.contains("| 100 | ") && page.contains("(docs/results/figure-12-1.svg)"), "{page}");
    assert!(page.contains("Not yet run: `sudo tests/bench --only harney`."), "{page}");
    assert!(options.results.join("docs/results/figure-12-1.svg").exists());

    // Interrupted after three.
    let kept = options.kept.join("figure-12.json");
    let mut values: serde_json::Map<String, Value> = serde_json::from_str(&fs::read_to_string(&kept).unwrap()).unwrap();
    for mbit in ["100", "120", "150"] {
        values.remove(mbit);
    }
    fs::write(&kept, serde_json::to_string(&values).unwrap()).unwrap();
    said.clear();
    run(&options, &mut |what, _| said.push(what.to_owned())).unwrap();
    assert_eq!(said.len(), 5, "three points, the end and the page: {said:?}");
    assert_eq!(said[0], "figure-12 [##############------] 7/10: 100");
    fs::remove_dir_all(&options.results).unwrap();
}

#[test]
fn a_plot_holds_its_points() {
    let curves = vec![Curve { name: "a<b", points: vec![(0.0, 0.0), (100.0, 40.0)] }];
    let svg = Plot { title: "t", across: "x", up: "y", curves }.svg();
    assert!(svg.contains("a&lt;b") && svg.contains("704.0,44.0"), "{svg}");
}

#[test]
fn what_is_left_takes_as_long_as_it_took_before() {
    let point = |key: &str| Point { key: key.into(), times: 3 };
    let points = [point("slow"), point("quick")];
    let mut progress = Progress::new("one", &points, &Notes::open("/nonexistent".into()));
    assert_eq!(progress.line("slow"), "one [--------------------] 0/6: slow");
    progress.done("slow", Duration::from_secs(100));
    assert_eq!(progress.line("quick"), "one [###-----------------] 1/6, 8 min left: quick");
    progress.done("quick", Duration::from_secs(10));
    progress.done("slow", Duration::from_secs(60));
    assert_eq!(progress.line("quick"), "one [##########----------] 3/6, 80 s left: quick");
}

#[test]
fn no_measurement_begins_when_the_time_is_up() {
    let options = BenchOptions { until: Some(Instant::now()), ..options("late") };
    run(&options, &mut |_, _| ()).unwrap();
    let page = fs::read_to_string(options.results.join("RESULTS.md")).unwrap();
    assert!(page.contains("Not yet run: `sudo tests/bench --only figure-12`."), "{page}");
    fs::remove_dir_all(&options.results).unwrap();
}
