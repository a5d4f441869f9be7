//! The page: one file, no scripts, nothing loaded from elsewhere.

use std::fmt::Write as _;

use super::chart::{Chart, Rule, bars, escape};
use super::table::{rows, short};
use super::{Demo, MoveReport};

/// What the pictures of one move show. Times are milliseconds since the beginning of the move, as in its steps; they
/// may begin before it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Curves {
    pub from_ms: f64,
    pub until_ms: f64,
    /// Mbit/s received by the client, by the beginning of each step.
    pub throughput: Vec<(f64, f64)>,
    /// Milliseconds.
    pub rtt: Vec<(f64, f64)>,
    /// Vertical marks: prepared, paused, arrived, switched, settled.
    pub marks: Vec<Mark>,
    /// When the VM stood still.
    pub pause_ms: Option<(f64, f64)>,
    /// Longest gap by connection, in milliseconds.
    pub gaps: Vec<(String, f64)>,
}

/// A moment in a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Mark {
    pub name: String,
    pub at_ms: f64,
}

const STYLE: &str = "
:root{color-scheme:light dark;--paper:#fdfcfa;--ink:#1d2125;--soft:#646b73;--line:#e3e0da;--shade:#efece5;
--rate:#2f6f9f;--rtt:#b4552d;--good:#2e7d4f;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--paper:#15181b;--ink:#e4e6e8;--soft:#98a0a8;--line:#2b3036;--shade:#20252a;
--rate:#6cb0de;--rtt:#e2916b;--good:#6cc391;--bad:#ff8a80}}
*{box-sizing:border-box}
body{margin:0 auto;padding:48px 24px 72px;max-width:1000px;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',sans-serif}
h1{font-size:28px;line-height:1.2;font-weight:600;letter-spacing:-.01em;margin:0 0 6px}
h2{font-size:19px;font-weight:600;margin:52px 0 4px}
h3{font-size:13px;font-weight:600;color:var(--soft);margin:22px 0 2px}
p{margin:0 0 10px;color:var(--soft)}
.figures{display:flex;flex-wrap:wrap;gap:14px 44px;margin:30px 0 8px}
.figure b{display:block;font-size:30px;font-weight:600;line-height:1.15;letter-spacing:-.02em;font-variant-numeric:tabular-nums}
.figure span{font-size:13px;color:var(--soft)}
table{border-collapse:collapse;width:100%;margin-top:10px;font-variant-numeric:tabular-nums}
td{padding:6px 0;border-bottom:1px solid var(--line);vertical-align:top}
td:last-child{text-align:right}
.scroll{overflow-x:auto}
svg{display:block;width:100%;height:auto;min-width:560px}
svg text{font-family:inherit;font-size:12px}
.tick{fill:var(--soft)}.name{fill:var(--ink)}
.grid{stroke:var(--line)}.rule{stroke:var(--ink);stroke-width:1;stroke-dasharray:2 3;opacity:.75}
.pause{fill:var(--shade)}
.curve{fill:none;stroke-width:1.6;stroke-linejoin:round}.fill{stroke:none;opacity:.14}
.curve.rate{stroke:var(--rate)}.fill.rate{fill:var(--rate)}
.curve.rtt{stroke:var(--rtt)}
.bar{fill:var(--rate)}.bar.still{fill:var(--line)}
.good{color:var(--good)}.bad{color:var(--bad)}
ol.steps{list-style:none;margin:8px 0 0;padding:0;columns:2;column-gap:44px;font-size:14px}
ol.steps li{display:flex;justify-content:space-between;gap:16px;padding:3px 0;break-inside:avoid;border-bottom:1px solid var(--line);
font-variant-numeric:tabular-nums}
ol.steps span:last-child{color:var(--soft);white-space:nowrap}
@media(max-width:640px){ol.steps{columns:1}}
";

/// The page for `demo`, with the pictures of each of its moves, in the same order. `direct` as in
/// [`MoveReport::faults`].
pub fn html(demo: &Demo, curves: &[Curves], direct: bool) -> String {
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>LSM: {mode}</title><style>{STYLE}</style></head><body>\
         <h1>A live move, seen from the client</h1>",
        mode = escape(&demo.mode)
    );
    let _ = write!(page, "<p>{}. {}</p>", escape(&summary(demo)), verdict(demo, direct));
    page.push_str(&figures(demo));
    page.push_str("<table>");
    for (label, value) in rows(&demo.moves) {
        let _ = write!(page, "<tr><td>{label}</td><td>{}</td></tr>", escape(&value));
    }
    page.push_str("</table>");
    for (index, report) in demo.moves.iter().enumerate() {
        page.push_str(&section(index + 1, report, curves.get(index), direct));
    }
    page.push_str("</body></html>\n");
    page
}

fn summary(demo: &Demo) -> String {
    let moves = demo.moves.len();
    let connections = demo.moves.first().map_or(0, |report| report.connections.total);
    format!("Mode {}, {moves} move{}, {connections} connections", demo.mode, if moves == 1 { "" } else { "s" })
}

fn verdict(demo: &Demo, direct: bool) -> String {
    let faults: usize = demo.moves.iter().map(|report| report.faults(direct).len()).sum();
    if faults == 0 {
        "<span class=\"good\">Nothing was lost.</span>".to_owned()
    } else {
        format!("<span class=\"bad\">{faults} fault{} below.</span>", if faults == 1 { "" } else { "s" })
    }
}

/// The three numbers that matter, large.
fn figures(demo: &Demo) -> String {
    let middle = |value: fn(&MoveReport) -> Option<f64>| {
        let known: Vec<f64> = demo.moves.iter().filter_map(value).collect();
        crate::measure::median(&known).map_or("never".to_owned(), |value| format!("{} ms", short(value)))
    };
    let mut text = String::from("<div class=\"figures\">");
    for (value, label) in [
        (middle(|report| report.arrival_to_direct_ms.to_client), "from arrival to data on the direct path"),
        (middle(MoveReport::gap_minus_pause_ms), "longest gap, beyond the VM's own pause"),
        (
            format!(
                "{} <span>to</span> {}",
                middle(|report| report.rtt_before_ms),
                middle(|report| report.rtt_after_ms)
            ),
            "round trip, before and after",
        ),
    ] {
        let _ = write!(text, "<div class=\"figure\"><b>{value}</b><span>{label}</span></div>");
    }
    text.push_str("</div>");
    text
}

fn section(number: usize, report: &MoveReport, curves: Option<&Curves>, direct: bool) -> String {
    let mut text = format!("<h2>Move {number}: {} to {}</h2>", escape(&report.from), escape(&report.to));
    for fault in report.faults(direct) {
        let _ = write!(text, "<p class=\"bad\">{}</p>", escape(&fault));
    }
    if let Some(curves) = curves {
        text.push_str(&pictures(curves));
    }
    if !report.steps.is_empty() {
        text.push_str("<h3>Steps</h3><ol class=\"steps\">");
        for step in &report.steps {
            let _ = write!(text, "<li><span>{}</span><span>{:.1} ms</span></li>", escape(&step.name), step.at_ms);
        }
        text.push_str("</ol>");
    }
    text
}

fn pictures(curves: &Curves) -> String {
    let rules: Vec<Rule> = curves.marks.iter().map(|mark| Rule { name: &mark.name, at: mark.at_ms }).collect();
    let base = Chart {
        title: "Throughput at the client, Mbit/s",
        class: "rate",
        range: (curves.from_ms, curves.until_ms),
        points: &curves.throughput,
        stairs: true,
        silence: f64::INFINITY,
        rules: &rules,
        shade: curves.pause_ms,
    };
    let rtt = Chart {
        title: "Round trip of the probe by the time it was sent, ms",
        class: "rtt",
        points: &curves.rtt,
        stairs: false,
        silence: 1_000.0,
        ..base.clone()
    };
    let mut text = String::new();
    for chart in [&base, &rtt] {
        let _ = write!(text, "<h3>{}</h3><div class=\"scroll\">{}</div>", chart.title, chart.svg());
    }
    if !curves.gaps.is_empty() {
        let pause = curves.pause_ms.map(|(from, until)| until - from);
        let title = "Longest gap of each connection; the pale part is the VM's pause";
        let _ = write!(text, "<h3>{title}</h3><div class=\"scroll\">{}</div>", bars(title, &curves.gaps, pause));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    fn curves() -> Curves {
        let rtt_at = |at: f64| if at < 1_560.0 { 70.6 + (at / 37.0).sin() } else { 2.8 + (at / 29.0).sin() / 4.0 };
        let stands = |at: f64| (1_150.0..1_560.0).contains(&at);
        Curves {
            from_ms: -2_000.0,
            until_ms: 6_000.0,
            throughput: (0..160)
                .map(|step| f64::from(step) * 50.0 - 2_000.0)
                .map(|at| {
                    (
                        at,
                        if stands(at) {
                            0.0
                        } else if at > 3_500.0 && at < 5_500.0 {
                            182.0
                        } else {
                            2.6
                        },
                    )
                })
                .collect(),
            rtt: (0..400)
                .map(|step| f64::from(step) * 20.0 - 2_000.0)
                .map(|at| (at, if stands(at) { 1_600.0 - at } else { rtt_at(at) }))
                .collect(),
            marks: [
                ("prepared", 320.0),
                ("switched", 1_020.0),
                ("paused", 1_150.0),
                ("arrived", 1_557.0),
                ("settled", 2_100.0),
            ]
            .map(|(name, at_ms)| Mark { name: name.into(), at_ms })
            .to_vec(),
            pause_ms: Some((1_150.0, 1_557.0)),
            gaps: (1..=8).map(|id| (format!("connection {id}"), 412.0 + f64::from(id) * 1.7)).collect(),
        }
    }

    #[test]
    fn the_page_is_whole_and_alone() {
        let mut report = sample();
        report.from = "mont<real".into();
        let page = html(&Demo { mode: "pre-join".into(), moves: vec![report] }, &[curves()], true);
        if let Some(path) = std::env::var_os("LSM_SAMPLE_PAGE") {
            std::fs::write(path, &page).unwrap();
        }
        assert_eq!(page.matches("role=\"img\"").count(), 3);
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert!(page.contains("mont&lt;real"));
        for outside in ["http:", "https:", "<script", "url(", "@import"] {
            assert!(!page.contains(outside), "{outside}");
        }
        for mark in ["prepared", "paused", "arrived", "switched", "settled"] {
            assert!(page.contains(&format!(">{mark}</text>")), "{mark}");
        }
        assert!(page.contains("Nothing was lost."));
    }
}
