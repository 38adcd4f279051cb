//! The time line: a lane for each person, drawn as SVG.
//!
//! Positions are percentages, so that a lane is as wide as its screen and nothing in it is distorted.

use crate::text::{attribute, counted, name, number};
use crate::time::{self, DAY, HOUR, MINUTE, SECOND};
use crate::{Impersonation, Mark, MarkKind, Report, Time};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Parts of the period, where impersonations are counted and not drawn one by one.
pub const BINS: u32 = 200;
/// Parts of the period of which each has one mark of a kind, at most.
pub const MARKS: u32 = 80;
/// People who have a lane.
pub const LANES: usize = 14;
/// Parts of the axis, at most.
const TICKS: i64 = 6;

struct Lane<'a> {
    person: &'a str,
    impersonations: Vec<&'a Impersonation>,
    bins: BTreeMap<u32, u64>,
    marks: Vec<&'a Mark>,
}

impl Lane<'_> {
    fn weight(&self) -> u64 {
        self.impersonations.len() as u64
            + self.bins.values().sum::<u64>()
            + self.marks.iter().map(|mark| mark.count).sum::<u64>()
    }
}

/// The lanes with their axis, or nothing where there is nothing to draw.
pub fn draw(report: &Report) -> Option<String> {
    let mut lanes: BTreeMap<&str, Lane> = BTreeMap::new();
    fn lane<'a, 'b>(lanes: &'b mut BTreeMap<&'a str, Lane<'a>>, person: &'a str) -> &'b mut Lane<'a> {
        lanes.entry(person).or_insert_with(|| Lane {
            person,
            impersonations: Vec::new(),
            bins: BTreeMap::new(),
            marks: Vec::new(),
        })
    }
    if report.density.is_empty() {
        for impersonation in &report.impersonations.rows {
            lane(&mut lanes, &impersonation.person)
                .impersonations
                .push(impersonation);
        }
    }
    for density in &report.density {
        *lane(&mut lanes, &density.person).bins.entry(density.bin).or_default() += density.count;
    }
    for mark in &report.marks {
        lane(&mut lanes, &mark.person).marks.push(mark);
    }
    let mut lanes: Vec<Lane> = lanes.into_values().collect();
    if lanes.is_empty() {
        return None;
    }
    lanes.sort_by_key(|lane| std::cmp::Reverse(lane.weight()));
    lanes.truncate(LANES);
    let hidden = report.counts.people.saturating_sub(lanes.len() as u64);
    let scale = Scale::of(report);
    let most = lanes
        .iter()
        .flat_map(|lane| lane.bins.values())
        .max()
        .copied()
        .unwrap_or(1);
    let mut html = String::from("<div class=\"lanes\">");
    for lane in &lanes {
        draw_lane(&mut html, lane, &scale, most);
    }
    html.push_str(&scale.axis());
    html.push_str("</div>");
    html.push_str(&legend(&lanes));
    if hidden > 0 {
        let _ = write!(
            html,
            "<p class=\"more\">and {}</p>",
            counted(hidden, "more person", "more people")
        );
    }
    Some(html)
}

/// From a time to a place between 0 and 100.
struct Scale {
    from: Time,
    span: i64,
    ticks: Vec<(Time, String)>,
}

impl Scale {
    fn of(report: &Report) -> Scale {
        let span = report.to.saturating_sub(report.from).max(1);
        let mut ticks = ticks(report.from, span);
        if ticks.is_empty() {
            // Too short for a round moment.
            ticks = vec![(report.from, time::clock(report.from))];
        }
        Scale {
            from: report.from,
            span,
            ticks,
        }
    }

    fn place(&self, time: Time) -> f64 {
        (time.saturating_sub(self.from) as f64 / self.span as f64 * 100.0).clamp(0.0, 100.0)
    }

    fn lines(&self) -> String {
        self.ticks
            .iter()
            .map(|(time, _)| {
                let x = self.place(*time);
                format!("<line class=\"tick\" x1=\"{x:.3}%\" x2=\"{x:.3}%\" y1=\"0\" y2=\"34\"/>")
            })
            .collect()
    }

    fn axis(&self) -> String {
        let mut html = String::from("<div class=\"lane axis\" aria-hidden=\"true\"><span></span><svg>");
        for (time, label) in &self.ticks {
            let x = self.place(*time);
            let anchor = match x {
                x if x < 8.0 => "start",
                x if x > 92.0 => "end",
                _ => "middle",
            };
            let _ = write!(
                html,
                "<text x=\"{x:.3}%\" y=\"14\" text-anchor=\"{anchor}\">{label}</text>"
            );
        }
        html.push_str("</svg></div>");
        html
    }
}

/// Round moments in the period, with words.
fn ticks(from: Time, span: i64) -> Vec<(Time, String)> {
    const STEPS: [i64; 18] = [
        SECOND,
        5 * SECOND,
        15 * SECOND,
        30 * SECOND,
        MINUTE,
        5 * MINUTE,
        10 * MINUTE,
        30 * MINUTE,
        HOUR,
        2 * HOUR,
        4 * HOUR,
        6 * HOUR,
        12 * HOUR,
        DAY,
        2 * DAY,
        3 * DAY,
        7 * DAY,
        14 * DAY,
    ];
    let to = from.saturating_add(span);
    match STEPS.iter().find(|step| span / **step < TICKS) {
        Some(step) => {
            // The last step that fits has at least one tick in all but the shortest periods.
            let first = from.div_euclid(*step) + i64::from(from.rem_euclid(*step) != 0);
            (first..first + TICKS + 1)
                .map(|at| at * step)
                .take_while(|at| *at <= to)
                .map(|at| (at, word(at, *step)))
                .collect()
        }
        None => {
            let first = time::civil(from);
            let months = span / (30 * DAY);
            let step = [1, 2, 3, 6, 12].into_iter().find(|step| months / step < TICKS);
            let step = step.unwrap_or_else(|| 12 * (months / 12 / TICKS + 1));
            let begin = (first.year * 12 + first.month - 1).div_euclid(step);
            (begin..begin + TICKS + 3)
                .map(|at| at * step)
                .map(|at| {
                    (
                        time::days(at.div_euclid(12), at.rem_euclid(12) + 1, 1).saturating_mul(DAY),
                        at,
                    )
                })
                .filter(|(at, _)| (from..=to).contains(at))
                .map(|(time, at)| {
                    let year = at.div_euclid(12);
                    let label = if step >= 12 {
                        year.to_string()
                    } else {
                        format!("{} {year}", time::month_name(at.rem_euclid(12) + 1))
                    };
                    (time, label)
                })
                .collect()
        }
    }
}

fn word(at: Time, step: i64) -> String {
    let moment = time::civil(at);
    let clock = time::clock(at);
    if step < MINUTE {
        clock
    } else if step < DAY && moment.rest != 0 {
        clock[..5].to_owned()
    } else {
        format!("{} {}", moment.day, time::month_name(moment.month))
    }
}

fn draw_lane(html: &mut String, lane: &Lane, scale: &Scale, most: u64) {
    let _ = write!(
        html,
        "<div class=\"lane\"><span>{}</span><svg role=\"img\" aria-label=\"{}\">\
         <rect class=\"track\" width=\"100%\" height=\"34\"/>{}",
        name(lane.person),
        told(lane),
        scale.lines()
    );
    let mut bars = lane.impersonations.clone();
    bars.sort_by_key(|impersonation| impersonation.seen.0);
    for impersonation in bars {
        let begun = impersonation.began.unwrap_or(scale.from);
        let ended = impersonation.ended.unwrap_or(impersonation.seen.1).max(begun);
        let (x, end) = (scale.place(begun), scale.place(ended));
        let _ = write!(
            html,
            "<rect class=\"bar\" x=\"{x:.3}%\" y=\"7\" width=\"{:.3}%\" height=\"13\"><title>as {}, {} to {}</title></rect>",
            (end - x).max(0.01),
            attribute(&impersonation.target, 64),
            impersonation.began.map_or("before".to_owned(), |at| format!("{} {}", time::date(at), time::clock(at))),
            impersonation.ended.map_or("an end that is not in the period".to_owned(), time::clock),
        );
    }
    let width = 100.0 / f64::from(BINS);
    for (bin, count) in &lane.bins {
        let quarter = (count.saturating_mul(4)).div_ceil(most).clamp(1, 4);
        let _ = write!(
            html,
            "<rect class=\"d{quarter}\" x=\"{:.3}%\" y=\"6\" width=\"{width:.3}%\" height=\"15\"><title>{}</title></rect>",
            f64::from(*bin) * width,
            number(*count)
        );
    }
    for mark in &lane.marks {
        let _ = write!(
            html,
            "<svg x=\"{:.3}%\" y=\"27\">{}</svg>",
            // Whole, also at the ends.
            scale.place(mark.at).clamp(0.7, 99.3),
            shape(mark.kind)
        );
    }
    html.push_str("</svg></div>");
}

/// Each has a shape of its own: colour is not all there is to tell them apart.
fn shape(kind: MarkKind) -> &'static str {
    match kind {
        MarkKind::Denied => "<path class=\"denied\" d=\"M0 -4.5L4.5 0L0 4.5L-4.5 0Z\"/>",
        MarkKind::Violation => "<path class=\"violation\" d=\"M-4 -4L4 4M-4 4L4 -4\"/>",
        MarkKind::Terminated => "<path class=\"terminated\" d=\"M-4.5 -3.5H4.5M-4.5 3.5H4.5M0 -3.5V3.5\"/>",
    }
}

fn of_kind(lane: &Lane, wanted: MarkKind) -> u64 {
    lane.marks
        .iter()
        .filter(|mark| mark.kind == wanted)
        .map(|mark| mark.count)
        .sum()
}

/// A lane in words.
fn told(lane: &Lane) -> String {
    let impersonations = lane.impersonations.len() as u64 + lane.bins.values().sum::<u64>();
    let marked = |wanted: MarkKind| of_kind(lane, wanted);
    let mut words = format!(
        "{}: {}",
        attribute(lane.person, 64),
        counted(impersonations, "impersonation", "impersonations")
    );
    for (kind, one, many) in [
        (MarkKind::Denied, "refusal", "refusals"),
        (MarkKind::Violation, "violation", "violations"),
        (MarkKind::Terminated, "termination", "terminations"),
    ] {
        if marked(kind) > 0 {
            let _ = write!(words, ", {}", counted(marked(kind), one, many));
        }
    }
    words
}

fn legend(lanes: &[Lane]) -> String {
    let mut html = String::from("<ul class=\"legend\">");
    let mut entry = |drawing: &str, words: &str| {
        let _ = write!(
            html,
            "<li><svg viewBox=\"-7 -7 14 14\" aria-hidden=\"true\">{drawing}</svg>{words}</li>"
        );
    };
    if lanes.iter().any(|lane| !lane.impersonations.is_empty()) {
        entry(
            "<rect class=\"bar\" x=\"-6\" y=\"-4\" width=\"12\" height=\"8\"/>",
            "an impersonation",
        );
    }
    if lanes.iter().any(|lane| !lane.bins.is_empty()) {
        entry(
            "<rect class=\"d1\" x=\"-6\" y=\"-5\" width=\"4\" height=\"10\"/>\
             <rect class=\"d2\" x=\"-2\" y=\"-5\" width=\"4\" height=\"10\"/>\
             <rect class=\"d4\" x=\"2\" y=\"-5\" width=\"4\" height=\"10\"/>",
            "impersonations that began: the fuller, the more",
        );
    }
    for (kind, words) in [
        (MarkKind::Denied, "refused"),
        (MarkKind::Violation, "violation"),
        (MarkKind::Terminated, "connection ended"),
    ] {
        if lanes.iter().any(|lane| of_kind(lane, kind) > 0) {
            entry(shape(kind), words);
        }
    }
    html.push_str("</ul>");
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_few_and_within_the_period() {
        for (from, span) in [
            (5, 30 * MINUTE),
            (7 * HOUR + 3, 1),
            (0, 1),
            (817_379_581_000_000, 3 * SECOND),
            (817_379_581_000_000, DAY),
            (817_379_581_000_000, 31 * DAY),
            (817_379_581_000_000, 90 * DAY),
            (817_379_581_000_000, 800 * DAY),
            (-9_000 * DAY, 40_000 * DAY),
            (-200_000 * DAY, 90_000_000 * DAY),
        ] {
            let ticks = ticks(from, span);
            assert!(ticks.len() <= TICKS as usize + 2, "{from} {span}: {}", ticks.len());
            assert!(ticks.iter().all(|(at, _)| (from..=from + span).contains(at)));
            assert!(ticks.is_sorted_by(|one, next| one.0 < next.0));
            if span >= 10 * SECOND {
                assert!(ticks.len() >= 2, "{from} {span}: {ticks:?}");
            }
        }
    }

    #[test]
    fn places_are_on_the_page() {
        let scale = Scale {
            from: 100,
            span: 200,
            ticks: Vec::new(),
        };
        for (time, expected) in [
            (i64::MIN, 0.0),
            (100, 0.0),
            (200, 50.0),
            (300, 100.0),
            (i64::MAX, 100.0),
        ] {
            assert!((scale.place(time) - expected).abs() < 1e-9, "{time}");
        }
    }
}
