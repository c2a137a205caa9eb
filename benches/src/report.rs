//! Samples of several sides, their percentiles, and the ratio to the peer.

use anyhow::Result;
use serde::Serialize;

/// One table.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What was measured, and in which unit.
    pub title: String,
    /// Unit of the values.
    pub unit: &'static str,
    /// The sides; the last one is what the others are compared with.
    pub sides: Vec<Side>,
    /// The first field of `/proc/loadavg`, before and after: above 2 the machine was doing something else.
    pub load: [String; 2],
    /// What the last side is.
    pub compared_with: &'static str,
    /// What must be known to read the figures.
    pub notes: Vec<String>,
}

/// The samples of one side.
#[derive(Debug, Serialize)]
pub struct Side {
    /// What it is.
    pub name: String,
    /// One value for each repetition, in the order they were taken.
    pub values: Vec<f64>,
}

impl Report {
    /// An empty table; the peer's name comes last.
    pub fn new(title: impl Into<String>, unit: &'static str, sides: &[&str]) -> Self {
        let side = |name: &&str| Side { name: (*name).to_owned(), values: Vec::new() };
        Self {
            title: title.into(),
            unit,
            sides: sides.iter().map(side).collect(),
            load: [load(), String::new()],
            compared_with: "peer",
            notes: Vec::new(),
        }
    }

    /// Adds a value to a side.
    pub fn add(&mut self, side: usize, value: f64) {
        self.sides[side].values.push(value);
    }

    /// Ends the measurement.
    pub fn finished(mut self) -> Self {
        self.load[1] = load();
        self
    }
}

impl Side {
    /// The smallest value that at least `percent` of all do not exceed; NaN without values.
    pub fn percentile(&self, percent: f64) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }
}

/// Prints all tables, or one JSON document.
pub fn print(reports: &[Report], json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(reports)?);
        return Ok(());
    }
    for report in reports {
        println!("{} [{}]", report.title, report.unit);
        println!("  {:<34} {:>4} {:>10} {:>10} {:>10}  ratio p50   p99", "", "n", "min", "p50", "p99");
        let Some(peer) = report.sides.last() else { continue };
        for side in &report.sides {
            let at = |percent| side.percentile(percent);
            print!(
                "  {:<34} {:>4} {:>10.3} {:>10.3} {:>10.3}",
                side.name,
                side.values.len(),
                at(0.0),
                at(50.0),
                at(99.0)
            );
            if std::ptr::eq(side, peer) {
                println!("  ({})", report.compared_with);
            } else {
                let ratio = |percent| at(percent) / peer.percentile(percent);
                println!("  {:>9.3}x {:>5.3}x", ratio(50.0), ratio(99.0));
            }
        }
        println!("  load average {} before, {} after", report.load[0], report.load[1]);
        for note in &report.notes {
            println!("  {note}");
        }
        println!();
    }
    Ok(())
}

/// The load average of the last minute.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let side = Side { name: String::new(), values: vec![4.0, 1.0, 3.0, 2.0] };
        assert_eq!([0.0, 25.0, 50.0, 51.0, 99.0].map(|p| side.percentile(p)), [1.0, 1.0, 2.0, 3.0, 4.0]);
        assert!(Side { name: String::new(), values: vec![] }.percentile(50.0).is_nan());
    }
}
