//! Speed over batch as a picture: tokens a second of all sequences together, and milliseconds a step, each
//! against how many are decoded together.

use std::fmt::Write as _;
use trireme_worker::bench::EngineBenchReport;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 300.0;
/// Room for the scales, at the left and below.
const LEFT: f64 = 56.0;
const BELOW: f64 = 46.0;
const ABOVE: f64 = 46.0;
/// Each of the two panels.
const PANEL: f64 = (WIDTH - 2.0 * LEFT - 24.0) / 2.0;

/// One of the two panels.
struct Panel<'a> {
    left: f64,
    title: &'a str,
    colour: &'a str,
    /// Batch and value, by batch.
    points: Vec<(usize, f64)>,
}

/// An SVG of the report's decode figures.
pub fn draw(report: &EngineBenchReport) -> String {
    let mut speeds = report.decode.clone();
    speeds.sort_by_key(|speed| speed.batch);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n"
    );
    let threads = match report.threads {
        1 => "1 thread".to_owned(),
        threads => format!("{threads} threads"),
    };
    text(
        &mut svg,
        LEFT,
        18.0,
        "start",
        &format!("{}, {threads}, {}", report.model, report.isa),
    );
    let panels = [
        Panel {
            left: LEFT,
            title: "tokens a second, all together",
            colour: "#1f6f8b",
            points: speeds
                .iter()
                .map(|s| (s.batch, s.tokens_per_second))
                .collect(),
        },
        Panel {
            left: 2.0 * LEFT + PANEL + 12.0,
            title: "milliseconds a step",
            colour: "#a4442a",
            points: speeds
                .iter()
                .map(|s| (s.batch, s.step_milliseconds))
                .collect(),
        },
    ];
    for panel in panels {
        panel.draw(&mut svg);
    }
    svg.push_str("</svg>\n");
    svg
}

impl Panel<'_> {
    fn draw(&self, svg: &mut String) {
        let most = self
            .points
            .iter()
            .map(|(_, value)| *value)
            .fold(0.0, f64::max);
        let step = round_step(most / 4.0);
        let top = step * (most / step).ceil().max(1.0);
        let last = self
            .points
            .iter()
            .map(|(batch, _)| *batch)
            .max()
            .unwrap_or(1);
        let doublings = (last.max(2) as f64).log2();
        let x = |batch: usize| self.left + PANEL * (batch as f64).log2() / doublings;
        let y = |value: f64| HEIGHT - BELOW - (HEIGHT - BELOW - ABOVE) * value / top;
        text(svg, self.left, ABOVE - 10.0, "start", self.title);
        let mut mark = 0.0;
        while mark <= top + step / 2.0 {
            let (at, right) = (y(mark), self.left + PANEL);
            line(svg, (self.left, at), (right, at), "#ddd");
            text(svg, self.left - 6.0, at + 4.0, "end", &format!("{mark}"));
            mark += step;
        }
        let path: Vec<String> = self
            .points
            .iter()
            .map(|(batch, value)| format!("{:.1},{:.1}", x(*batch), y(*value)))
            .collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>",
            path.join(" "),
            self.colour
        );
        for (batch, value) in &self.points {
            let (x, y) = (x(*batch), y(*value));
            let _ = writeln!(
                svg,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{}\"><title>{batch}: {value:.1}</title></circle>",
                self.colour
            );
            text(svg, x, HEIGHT - BELOW + 18.0, "middle", &batch.to_string());
        }
        let middle = self.left + PANEL / 2.0;
        text(
            svg,
            middle,
            HEIGHT - 8.0,
            "middle",
            "sequences decoded together",
        );
    }
}

/// 1, 2 or 5 times a power of ten, not below `least`.
fn round_step(least: f64) -> f64 {
    let power = 10f64.powf(least.max(1e-9).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|times| times * power);
    steps
        .into_iter()
        .find(|step| *step >= least)
        .unwrap_or(power)
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), colour: &str) {
    let _ = writeln!(
        svg,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\"/>",
        from.0, from.1, to.0, to.1
    );
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use trireme_worker::bench::DecodeSpeed;

    #[test]
    fn every_batch_has_a_point_in_both_panels() {
        let speed = |batch, tokens_per_second| DecodeSpeed {
            batch,
            tokens_per_second,
            step_milliseconds: 1e3 * batch as f64 / tokens_per_second,
        };
        let svg = draw(&EngineBenchReport {
            model: "a<b".into(),
            isa: "avx2",
            amx_rows_min: None,
            threads: 2,
            prompt_tokens: 8,
            gen_tokens: 8,
            context_tokens: 0,
            load_seconds: 0.1,
            token_bytes: 1,
            kv_bytes: 1,
            peak_resident_bytes: None,
            precision: Default::default(),
            weight_bytes: 1,
            read_bytes_per_second: 1.0,
            prefill_tokens_per_second: 1.0,
            decode: vec![speed(16, 900.0), speed(1, 300.0)],
        });
        assert!(svg.contains("a&lt;b, 2 threads, avx2"));
        assert_eq!(svg.matches("<circle").count(), 4);
        // The fastest stands under the top of the scale, which is 1,000: 9/10 of the way up.
        let y = HEIGHT - BELOW - 0.9 * (HEIGHT - BELOW - ABOVE);
        assert!(svg.contains(&format!("cx=\"{:.1}\" cy=\"{y:.1}\"", LEFT + PANEL)));
    }

    #[test]
    fn scales_have_round_steps() {
        assert_eq!(round_step(230.0), 500.0);
        assert_eq!(round_step(200.0), 200.0);
        assert_eq!(round_step(0.7), 1.0);
        assert_eq!(round_step(0.0), 1e-9);
    }
}
