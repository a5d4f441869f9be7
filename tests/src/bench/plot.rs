//! Curves over two linear axes, as a picture that stands alone.

use std::fmt::Write as _;

use crate::report::{escape, number, step};

/// One curve.
pub(super) struct Curve {
    pub(super) name: &'static str,
    pub(super) points: Vec<(f64, f64)>,
}

pub(super) struct Plot<'a> {
    pub(super) title: &'a str,
    pub(super) across: &'static str,
    pub(super) up: &'static str,
    pub(super) curves: Vec<Curve>,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 48.0;
/// Told apart without colours too: by their order in the legend and their dashes.
const STROKES: [(&str, &str); 4] = [("#1565c0", ""), ("#c62828", "7 4"), ("#2e7d32", "2 3"), ("#6a1b9a", "9 3 2 3")];

impl Plot<'_> {
    pub(super) fn svg(&self) -> String {
        let all = || self.curves.iter().flat_map(|curve| &curve.points);
        let right = all().map(|point| point.0).fold(0.0, f64::max).max(1e-9);
        let peak = all().map(|point| point.1).fold(0.0, f64::max).max(1e-9);
        let (every_x, every_y) = (step(right, 8.0), step(peak, 5.0));
        let ceiling = (peak / every_y).ceil() * every_y;
        let x = |value: f64| LEFT + value / right * (WIDTH - LEFT - RIGHT);
        let y = |value: f64| TOP + (1.0 - value / ceiling) * (HEIGHT - TOP - BOTTOM);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
             font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
             <text x=\"{LEFT}\" y=\"18\" font-size=\"14\">{}</text>\n",
            escape(self.title)
        );
        for index in 0..=(ceiling / every_y).round() as usize {
            let value = index as f64 * every_y;
            let _ = writeln!(
                svg,
                "<line x1=\"{LEFT}\" x2=\"{:.0}\" y1=\"{1:.1}\" y2=\"{1:.1}\" stroke=\"#ddd\"/>\
                 <text x=\"{2:.0}\" y=\"{3:.1}\" text-anchor=\"end\">{4}</text>",
                WIDTH - RIGHT,
                y(value),
                LEFT - 6.0,
                y(value) + 4.0,
                number(value)
            );
        }
        for index in 0..=(right / every_x + 1e-9).floor() as usize {
            let value = index as f64 * every_x;
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{}</text>",
                x(value),
                HEIGHT - BOTTOM + 16.0,
                number(value)
            );
        }
        let _ = writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\">{}</text>\
             <text transform=\"translate(16 {:.0}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            (LEFT + WIDTH - RIGHT) / 2.0,
            HEIGHT - 10.0,
            escape(self.across),
            (TOP + HEIGHT - BOTTOM) / 2.0,
            escape(self.up)
        );
        for ((curve, (colour, dashes)), row) in self.curves.iter().zip(STROKES.iter().cycle()).zip(0..) {
            let points: Vec<String> = curve.points.iter().map(|(a, b)| format!("{:.1},{:.1}", x(*a), y(*b))).collect();
            let at = LEFT + 170.0 * f64::from(row);
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"{dashes}\"/>\
                 <line x1=\"{at:.0}\" x2=\"{:.0}\" y1=\"32\" y2=\"32\" stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"{dashes}\"/>\
                 <text x=\"{:.0}\" y=\"36\">{}</text>",
                points.join(" "),
                at + 24.0,
                at + 30.0,
                escape(curve.name)
            );
        }
        svg.push_str("</svg>\n");
        svg
    }
}
