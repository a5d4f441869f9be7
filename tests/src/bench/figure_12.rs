//! SEC'17, figure 12: how long a move takes over rate, with pre-copy and with hot pages passed over. Simulated: there is
//! no QEMU that passes them over.

use lsm_plan::{Predictions, figure_12};

use super::{
    Benchmark, Notes, Page, Point,
    plot::{Curve, Plot},
};
use crate::shell::LabError;

pub(super) const BENCHMARK: Benchmark = Benchmark {
    name: "figure-12",
    title: "Pre-copy and hot-skip over rate (SEC'17, figure 12; simulated)",
    points,
    begin: || Ok(Box::new(|key| measure(key).map_err(LabError::Other))),
    show,
};

const RATES: [u32; 10] = [100, 120, 150, 200, 300, 400, 500, 600, 800, 1000];

fn points(_quick: bool) -> Vec<Point> {
    RATES.iter().map(|mbit| Point { key: mbit.to_string(), times: 1 }).collect()
}

fn measure(key: &str) -> Result<serde_json::Value, String> {
    let mbit = key.parse().map_err(|_| format!("{key} is no rate"))?;
    serde_json::to_value(figure_12(mbit).predict()).map_err(|error| error.to_string())
}

fn show(notes: &Notes, page: &mut Page) {
    page.say(
        "A VM of 1 GiB that writes 97 Mbit/s of new differences, by `lsm-plan`, the simulator behind `lsm-hook estimate`. \
         How often which page is written is ours, chosen so that the lowest rate comes out near the paper's (more than \
         20 % saved): the shape over the rates is the simulator's word, the height at 100 Mbit/s is not.",
    );
    let (mut rows, mut pre, mut hot) = (Vec::new(), Vec::new(), Vec::new());
    for mbit in RATES {
        let Some(ways) = notes.of::<Predictions>(&mbit.to_string()).pop() else { continue };
        let (Some(plain), Some(skip)) = (ways.pre_copy, ways.hot_skip) else { continue };
        let saved = 100.0 * (1.0 - skip.seconds / plain.seconds);
        rows.push(vec![
            mbit.to_string(),
            format!("{:.1}", plain.seconds),
            format!("{:.1}", skip.seconds),
            format!("{saved:.0} %"),
        ]);
        pre.push((f64::from(mbit), plain.seconds));
        hot.push((f64::from(mbit), skip.seconds));
    }
    page.table(&["Mbit/s", "pre-copy, s", "hot-skip, s", "saved"], &rows);
    page.plot(&Plot {
        title: "Time of a move over rate",
        across: "Mbit/s",
        up: "seconds",
        curves: vec![Curve { name: "pre-copy", points: pre }, Curve { name: "hot-skip", points: hot }],
    });
}
