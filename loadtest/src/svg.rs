//! What all pictures have in common: colours, which follow the reader's choice of light or dark, axes that end at round figures,
//! and text that cannot become markup.

/// Colours by name, for a `<style>`.
pub const COLOURS: &str = ":root{--ink:#1d2329;--dim:#5d6872;--line:#d9dee3;--soft:#f4f6f8;--back:#fff;--a:#1f6f8b;--b:#c2571a;--c:#7a3e9d;--d:#7d8791;--bad:#b3261e;--warn:#8a5a00;--good:#2e6b34}
@media(prefers-color-scheme:dark){:root{--ink:#e4e8ec;--dim:#98a3ad;--line:#353d45;--soft:#1c2227;--back:#14181c;--a:#6cc0dc;--b:#f0955c;--c:#c79ae0;--d:#77828c;--bad:#ff8a80;--warn:#e0b050;--good:#86c98d}}";

/// The next of 1, 2, 2.5, 5, 10, 20 … that is not below `value`.
pub fn round_up(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(value.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().find(|step| step * power >= value * 0.999_999);
    step.unwrap_or(10.0) * power
}

/// `text` as it may stand in HTML and SVG.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_figures() {
        let rounded: Vec<f64> = [0.0, 0.7, 1.0, 1.1, 2.2, 3.0, 9.0, 10.0, 10_001.0].map(round_up).into();
        assert_eq!(rounded, [1.0, 1.0, 1.0, 2.0, 2.5, 5.0, 10.0, 10.0, 20_000.0]);
    }
}
