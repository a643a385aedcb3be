//! HdrHistogram's text format, which its plotters read: latencies in milliseconds over quantiles that get finer and finer.

use crate::clock::MS_NS;
use crate::latency::Latencies;
use std::fmt::Write;

/// A distribution in that format.
pub fn render(latencies: &Latencies) -> String {
    let ms = |ns: f64| ns / MS_NS as f64;
    let mut text = format!("{:>12} {:>14} {:>10} {:>14}\n\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)");
    for (quantile, ns, count) in latencies.spectrum() {
        let _ = write!(text, "{:>12.3} {quantile:>14.12} {count:>10}", ms(ns as f64));
        // The last line has no fourth column: it would be infinite.
        let _ = if quantile < 1.0 { writeln!(text, " {:>14.2}", 1.0 / (1.0 - quantile)) } else { writeln!(text) };
    }
    let _ = writeln!(
        text,
        "#[Mean    = {:>12.3}, StdDeviation   = {:>12.3}]",
        ms(latencies.mean()),
        ms(latencies.deviation())
    );
    let _ =
        writeln!(text, "#[Max     = {:>12.3}, Total count    = {:>12}]", ms(latencies.max() as f64), latencies.count());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_rise_to_one_and_counts_to_all() {
        let mut latencies = Latencies::default();
        (1..=1000).for_each(|number| latencies.record(number * MS_NS / 10));
        let text = render(&latencies);
        let rows: Vec<Vec<f64>> = text
            .lines()
            .skip(2)
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split_ascii_whitespace().map(|field| field.parse().unwrap()).collect())
            .collect();
        assert!(
            rows.windows(2)
                .all(|pair| pair[0][0] <= pair[1][0] && pair[0][1] <= pair[1][1] && pair[0][2] <= pair[1][2])
        );
        let last = rows.last().unwrap();
        assert_eq!((last[1], last[2]), (1.0, 1000.0));
        assert!((99.9..100.2).contains(&last[0]));
        assert!(text.contains("Total count    =         1000"));
    }
}
