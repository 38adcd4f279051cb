//! Times in UTC.

use crate::Time;

pub const SECOND: i64 = 1_000_000;
pub const MINUTE: i64 = 60 * SECOND;
pub const HOUR: i64 = 60 * MINUTE;
pub const DAY: i64 = 24 * HOUR;

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// A moment taken apart, in the proleptic Gregorian calendar.
pub struct Civil {
    pub year: i64,
    /// From 1.
    pub month: i64,
    pub day: i64,
    /// Microseconds since midnight.
    pub rest: i64,
}

/// Days from 2000-01-01 to a date.
pub fn days(year: i64, month: i64, day: i64) -> i64 {
    // Years that begin in March have the odd day at their end.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year - era * 400;
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 730_425
}

pub fn civil(time: Time) -> Civil {
    let since = time.div_euclid(DAY) + 730_425;
    let era = since.div_euclid(146_097);
    let of_era = since.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    Civil {
        year: year + era * 400 + i64::from(month <= 2),
        month,
        day,
        rest: time.rem_euclid(DAY),
    }
}

pub fn month_name(month: i64) -> &'static str {
    usize::try_from(month - 1)
        .ok()
        .and_then(|at| MONTHS.get(at))
        .copied()
        .unwrap_or("?")
}

/// `2026-11-25`
pub fn date(time: Time) -> String {
    let Civil { year, month, day, .. } = civil(time);
    format!("{year:04}-{month:02}-{day:02}")
}

/// `09:53:01`
pub fn clock(time: Time) -> String {
    let rest = civil(time).rest / SECOND;
    format!("{:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}

/// As an element: the date, and the time of day.
pub fn element(time: Time) -> String {
    let (date, clock) = (date(time), clock(time));
    format!("<time datetime=\"{date}T{clock}Z\">{date} <b>{clock}</b></time>")
}

/// A length of time in the two largest units.
pub fn length(microseconds: i64) -> String {
    let units = [(DAY, "d"), (HOUR, "h"), (MINUTE, "min"), (SECOND, "s")];
    let microseconds = microseconds.max(0);
    if microseconds < SECOND {
        return format!("{} ms", microseconds / 1000);
    }
    let at = units.iter().position(|(size, _)| microseconds >= *size).unwrap_or(3);
    let (size, unit) = units[at];
    let mut text = format!("{} {unit}", microseconds / size);
    if let Some((next, unit)) = units.get(at + 1) {
        let rest = microseconds % size / next;
        if rest > 0 {
            text.push_str(&format!(" {rest} {unit}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn iso(time: Time) -> String {
        format!("{}T{}Z", date(time), clock(time))
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        let cases = [
            (0, "2000-01-01T00:00:00Z"),
            (-1, "1999-12-31T23:59:59Z"),
            (59 * DAY, "2000-02-29T00:00:00Z"),
            (60 * DAY + 1, "2000-03-01T00:00:00Z"),
            (817_379_581_000_000, "2025-11-25T09:53:01Z"),
            (-10_957 * DAY, "1970-01-01T00:00:00Z"),
            (36_584 * DAY, "2100-03-01T00:00:00Z"),
        ];
        for (time, expected) in cases {
            assert_eq!(iso(time), expected);
        }
    }

    #[test]
    fn days_and_civil_are_each_others_way_back() {
        for day in (-200_000..200_000).step_by(7) {
            let c = civil(day * DAY);
            assert_eq!(days(c.year, c.month, c.day), day);
        }
    }

    #[test]
    fn lengths_have_two_units() {
        let cases = [
            (0, "0 ms"),
            (999_999, "999 ms"),
            (SECOND, "1 s"),
            (90 * SECOND, "1 min 30 s"),
            (HOUR, "1 h"),
            (26 * HOUR + 5 * MINUTE, "1 d 2 h"),
            (-5, "0 ms"),
        ];
        for (given, expected) in cases {
            assert_eq!(length(given), expected);
        }
    }
}
