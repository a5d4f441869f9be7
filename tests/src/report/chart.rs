//! Pictures as SVG text. Colours are the page's, by class.

use std::fmt::Write as _;

/// A vertical line with a name.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rule<'a> {
    pub(super) name: &'a str,
    pub(super) at: f64,
}

/// What a line chart shows.
#[derive(Debug, Clone)]
pub(super) struct Chart<'a> {
    pub(super) title: &'a str,
    /// Class of the curve.
    pub(super) class: &'a str,
    /// Horizontal range, in milliseconds.
    pub(super) range: (f64, f64),
    /// Milliseconds and value, in order.
    pub(super) points: &'a [(f64, f64)],
    /// Whether values are sums over a step that starts at the point, drawn as stairs and filled.
    pub(super) stairs: bool,
    /// A silence longer than this many milliseconds breaks the curve.
    pub(super) silence: f64,
    pub(super) rules: &'a [Rule<'a>],
    /// The VM's pause, shaded.
    pub(super) shade: Option<(f64, f64)>,
}

const WIDTH: f64 = 920.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 16.0;
const HEIGHT: f64 = 190.0;
const BOTTOM: f64 = 26.0;
/// Room above the curve for one row of names.
const ROW: f64 = 15.0;
/// Width of a letter of a rule's name, roughly.
const LETTER: f64 = 6.3;

/// Escapes what is special in XML.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Round steps that divide `span` into about `wanted` parts.
pub(crate) fn step(span: f64, wanted: f64) -> f64 {
    let rough = (span / wanted).max(1e-9);
    let magnitude = 10_f64.powf(rough.log10().floor());
    let factor = rough / magnitude;
    magnitude
        * if factor <= 1.0 {
            1.0
        } else if factor <= 2.0 {
            2.0
        } else if factor <= 5.0 {
            5.0
        } else {
            10.0
        }
}

pub(crate) fn number(value: f64) -> String {
    if value == value.round() { format!("{value:.0}") } else { format!("{value:.1}") }
}

impl Chart<'_> {
    pub(super) fn svg(&self) -> String {
        let rows = self.rows();
        let levels = rows.iter().map(|(_, row)| row + 1).max().unwrap_or(0);
        let top = 8.0 + ROW * levels as f64;
        let height = top + HEIGHT + BOTTOM;
        let (from, until) = self.range;
        let x = |at: f64| LEFT + (at - from) / (until - from).max(1e-9) * (WIDTH - LEFT - RIGHT);
        let peak =
            self.points.iter().filter(|point| self.sets_scale(point)).map(|(_, value)| *value).fold(0.0, f64::max);
        let vertical = step(peak.max(1e-3) * 1.05, 4.0);
        let ceiling = (peak * 1.02 / vertical).ceil().max(1.0) * vertical;
        let y = |value: f64| top + HEIGHT * (1.0 - value / ceiling);
        let mut svg =
            format!(r#"<svg viewBox="0 0 {WIDTH} {height:.0}" role="img" aria-label="{}">"#, escape(self.title));
        if let Some((start, end)) = self.shade {
            let (left, right) = (x(start.max(from)), x(end.min(until)));
            let _ = write!(
                svg,
                r#"<rect class="pause" x="{left:.1}" y="{top:.1}" width="{:.1}" height="{HEIGHT}"/>"#,
                (right - left).max(0.0)
            );
        }
        let mut value = 0.0;
        while value <= ceiling + vertical / 2.0 {
            let _ = write!(
                svg,
                r#"<line class="grid" x1="{LEFT}" x2="{:.1}" y1="{2:.1}" y2="{2:.1}"/><text class="tick" x="{3:.1}" y="{4:.1}" text-anchor="end">{1}</text>"#,
                WIDTH - RIGHT,
                number(value),
                y(value),
                LEFT - 8.0,
                y(value) + 4.0
            );
            value += vertical;
        }
        let horizontal = step(until - from, 8.0);
        let mut at = (from / horizontal).ceil() * horizontal;
        while at <= until {
            let _ = write!(
                svg,
                r#"<text class="tick" x="{:.1}" y="{:.1}" text-anchor="middle">{} s</text>"#,
                x(at),
                top + HEIGHT + 18.0,
                number((at / 100.0).round() / 10.0)
            );
            at += horizontal;
        }
        // An element of its own cuts off what is above the ceiling.
        let _ = write!(
            svg,
            r#"<svg x="0" y="{top:.1}" width="{WIDTH}" height="{0:.1}" viewBox="0 {top:.1} {WIDTH} {0:.1}">{1}</svg>"#,
            HEIGHT + 1.0,
            self.curve(&x, &y, y(0.0))
        );
        for (rule, row) in rows {
            let (at, name) = (x(rule.at), escape(rule.name));
            let text_y = 12.0 + ROW * row as f64;
            let _ = write!(
                svg,
                r#"<line class="rule" x1="{at:.1}" x2="{at:.1}" y1="{:.1}" y2="{:.1}"/><text class="name" x="{:.1}" y="{text_y:.1}">{name}</text>"#,
                text_y - 9.0,
                top + HEIGHT,
                at + 4.0,
            );
        }
        svg.push_str("</svg>");
        svg
    }

    /// A value in milliseconds that includes the pause says nothing that the shade does not; it must not flatten the rest.
    fn sets_scale(&self, (at, value): &(f64, f64)) -> bool {
        let (from, until) = self.range;
        let waited = !self.stairs && self.shade.is_some_and(|(start, end)| *at < end && at + value > start);
        (from..=until).contains(at) && !waited
    }

    /// The rules in range, each with the row in which its name has room.
    fn rows(&self) -> Vec<(&Rule<'_>, usize)> {
        let (from, until) = self.range;
        let mut rules: Vec<&Rule> = self.rules.iter().filter(|rule| (from..=until).contains(&rule.at)).collect();
        rules.sort_by(|a, b| a.at.total_cmp(&b.at));
        let mut ends: Vec<f64> = Vec::new();
        rules
            .into_iter()
            .map(|rule| {
                let at = (rule.at - from) / (until - from).max(1e-9) * (WIDTH - LEFT - RIGHT);
                let end = at + 12.0 + LETTER * rule.name.chars().count() as f64;
                let row = ends.iter().position(|taken| *taken <= at).unwrap_or(ends.len());
                if row == ends.len() {
                    ends.push(end);
                } else {
                    ends[row] = end;
                }
                (rule, row)
            })
            .collect()
    }

    fn curve(&self, x: &impl Fn(f64) -> f64, y: &impl Fn(f64) -> f64, floor: f64) -> String {
        let (from, until) = self.range;
        let shown: Vec<(f64, f64)> =
            self.points.iter().copied().filter(|(at, _)| (from..=until).contains(at)).collect();
        let mut path = String::new();
        let mut last: Option<(f64, f64)> = None;
        for (at, value) in &shown {
            let word = match last {
                Some((before, level)) if at - before <= self.silence => {
                    if self.stairs {
                        let _ = write!(path, "L{:.1} {:.1}", x(*at), y(level));
                    }
                    'L'
                }
                _ => 'M',
            };
            let _ = write!(path, "{word}{:.1} {:.1}", x(*at), y(*value));
            last = Some((*at, *value));
        }
        let mut svg = String::new();
        if let (true, Some((first, _)), Some((end, _))) = (self.stairs, shown.first(), shown.last()) {
            let _ = write!(
                svg,
                r#"<path class="fill {}" d="{path}L{:.1} {floor:.1}L{:.1} {floor:.1}Z"/>"#,
                self.class,
                x(*end),
                x(*first)
            );
        }
        let _ = write!(svg, r#"<path class="curve {}" d="{path}"/>"#, self.class);
        svg
    }
}

/// Horizontal bars: label, and value in milliseconds; the part below `base` is shaded as the pause.
pub(super) fn bars(title: &str, values: &[(String, f64)], base: Option<f64>) -> String {
    const BAR: f64 = 22.0;
    const LABEL: f64 = 130.0;
    const VALUE: f64 = 70.0;
    let height = BAR * values.len() as f64 + 4.0;
    let peak = values.iter().map(|(_, value)| *value).chain(base).fold(1.0, f64::max);
    let width = |value: f64| value / peak * (WIDTH - LABEL - VALUE);
    let mut svg = format!(r#"<svg viewBox="0 0 {WIDTH} {height:.0}" role="img" aria-label="{}">"#, escape(title));
    for (index, (label, value)) in values.iter().enumerate() {
        let y = BAR * index as f64 + 4.0;
        let pause = base.unwrap_or(0.0).min(*value);
        let _ = write!(
            svg,
            r#"<text class="tick" x="{:.1}" y="{:.1}" text-anchor="end">{}</text><rect class="bar still" x="{LABEL}" y="{y:.1}" width="{:.1}" height="14"/><rect class="bar" x="{:.1}" y="{y:.1}" width="{:.1}" height="14"/><text class="tick" x="{:.1}" y="{:.1}">{} ms</text>"#,
            LABEL - 8.0,
            y + 11.0,
            escape(label),
            width(pause),
            LABEL + width(pause),
            width(value - pause),
            LABEL + width(*value) + 6.0,
            y + 11.0,
            super::table::short(*value)
        );
    }
    svg.push_str("</svg>");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_collide_go_to_another_row() {
        let rules = [
            Rule { name: "paused", at: 500.0 },
            Rule { name: "arrived", at: 505.0 },
            Rule { name: "prepared", at: 100.0 },
            Rule { name: "beyond", at: 5_000.0 },
        ];
        let chart = Chart {
            title: "t",
            class: "rtt",
            range: (0.0, 1_000.0),
            points: &[(0.0, 1.0), (10.0, 2.0), (900.0, 3.0)],
            stairs: false,
            silence: 100.0,
            rules: &rules,
            shade: None,
        };
        let rows: Vec<(&str, usize)> = chart.rows().into_iter().map(|(rule, row)| (rule.name, row)).collect();
        assert_eq!(rows, [("prepared", 0), ("paused", 0), ("arrived", 1)]);
        let svg = chart.svg();
        let curve = svg.split(r#"class="curve rtt" d=""#).nth(1).unwrap().split('"').next().unwrap();
        assert_eq!(curve.matches('M').count(), 2, "a silence breaks the curve: {curve}");
        assert!(!svg.contains("beyond"));
    }

    #[test]
    fn round_trips_over_the_pause_do_not_set_the_scale() {
        let chart = Chart {
            title: "t",
            class: "rtt",
            range: (0.0, 1_000.0),
            points: &[(0.0, 70.0), (90.0, 480.0), (600.0, 3.0)],
            stairs: false,
            silence: 100.0,
            rules: &[],
            shade: Some((100.0, 500.0)),
        };
        let svg = chart.svg();
        assert!(svg.contains(">80<") && !svg.contains(">200<"), "{svg}");
    }

    #[test]
    fn steps_are_round() {
        assert_eq!(step(100.0, 4.0), 50.0);
        assert_eq!(step(70.0, 4.0), 20.0);
        assert!((step(0.3, 4.0) - 0.1).abs() < 1e-12);
    }

    #[test]
    fn names_are_escaped() {
        assert_eq!(escape("a<b & \"c\""), "a&lt;b &amp; &quot;c&quot;");
    }
}
