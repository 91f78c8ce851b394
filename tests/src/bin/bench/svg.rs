//! Pictures: drawn by hand, so that a document can show them without anything else.
use std::fmt::Write as _;

use crate::report::{Compared, Comparison};

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 260.0;
/// Left and below the axes.
const MARGIN: f64 = 46.0;
const COLOURS: [&str; 6] = ["#c0392b", "#2c3e50", "#95a5a6", "#2980b9", "#27ae60", "#8e44ad"];

/// A line of a chart.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) name: String,
    /// Horizontal values from left to right, and vertical ones.
    pub(crate) points: Vec<(f64, f64)>,
}

/// One chart of a picture.
#[derive(Clone, Debug)]
pub(crate) struct Chart {
    pub(crate) title: String,
    /// What is on the horizontal axis; its values grow tenfold in equal steps.
    pub(crate) across: String,
    pub(crate) up: String,
    pub(crate) series: Vec<Series>,
}

/// The part of requests that was answered within a time, for each case.
pub(crate) fn latencies(comparison: &Comparison) -> String {
    picture(&comparison.cases.iter().map(distribution).collect::<Vec<_>>())
}

#[expect(clippy::cast_precision_loss, reason = "counts and nanoseconds are far below 2^53")]
fn distribution(case: &Compared) -> Chart {
    let series = case.contestants.iter().map(|line| {
        let all = line.latencies_ns.count() as f64;
        let mut seen = 0;
        let points = line.latencies_ns.counts().map(|(nanos, count)| {
            seen += count;
            (nanos as f64 / 1e3, seen as f64 / all * 100.0)
        });
        Series { name: line.name.clone(), points: points.collect() }
    });
    Chart {
        title: case.case.clone(),
        across: "µs".to_owned(),
        up: "% answered within".to_owned(),
        series: series.collect(),
    }
}

/// Charts side by side, in two columns.
pub(crate) fn picture(charts: &[Chart]) -> String {
    let rows = u32::try_from(charts.len().div_ceil(2)).unwrap_or(1);
    let (width, height) = (2.0 * WIDTH, f64::from(rows) * HEIGHT);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"10\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    for (number, chart) in (0_u32..).zip(charts) {
        let (x, y) = (f64::from(number % 2) * WIDTH, f64::from(number / 2) * HEIGHT);
        let _ = writeln!(svg, "<g transform=\"translate({x} {y})\">\n{}</g>", drawn(chart));
    }
    svg.push_str("</svg>\n");
    svg
}

fn drawn(chart: &Chart) -> String {
    let points = || chart.series.iter().flat_map(|series| &series.points);
    let (left, right) = points().fold((f64::MAX, f64::MIN), |(least, most), (x, _)| (least.min(*x), most.max(*x)));
    let top = points().fold(0.0_f64, |most, (_, y)| most.max(*y)).max(f64::MIN_POSITIVE);
    let (from, to) = (left.max(1e-3).log10().floor(), right.max(1e-2).log10().ceil());
    let (plot_width, plot_height) = (WIDTH - MARGIN - 20.0, HEIGHT - MARGIN - 30.0);
    let x = |value: f64| MARGIN + (value.max(1e-3).log10() - from) / (to - from) * plot_width;
    let y = |value: f64| 24.0 + plot_height * (1.0 - value / top);
    let mut svg = format!("<text x=\"{MARGIN}\" y=\"14\" font-weight=\"bold\">{}</text>\n", chart.title);
    let mut decade = from;
    while decade <= to {
        let (at, value) = (x(10_f64.powf(decade)), 10_f64.powf(decade));
        let bottom = 24.0 + plot_height;
        let _ = writeln!(svg, "<path d=\"M{at:.1} 24V{bottom:.1}\" stroke=\"#ddd\"/>");
        let _ = writeln!(svg, "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{value}</text>", bottom + 13.0);
        decade += 1.0;
    }
    for part in 0..=4 {
        let value = top * f64::from(part) / 4.0;
        let at = y(value);
        let _ = writeln!(svg, "<path d=\"M{MARGIN} {at:.1}H{:.1}\" stroke=\"#ddd\"/>", MARGIN + plot_width);
        let text = if top < 10.0 { format!("{value:.2}") } else { format!("{value:.0}") };
        let _ =
            writeln!(svg, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>", MARGIN - 4.0, at + 3.0);
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n<text x=\"4\" y=\"14\">{}</text>",
        MARGIN + plot_width,
        HEIGHT - 6.0,
        chart.across,
        chart.up
    );
    for (number, series) in chart.series.iter().enumerate() {
        let colour = COLOURS.get(number % COLOURS.len()).copied().unwrap_or_default();
        let line: Vec<String> = series.points.iter().map(|(a, b)| format!("{:.1},{:.1}", x(*a), y(*b))).collect();
        let _ = writeln!(
            svg,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" points=\"{}\"/>",
            line.join(" ")
        );
        let down = 34.0 + 12.0 * f64::from(u32::try_from(number).unwrap_or_default());
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{down}\" fill=\"{colour}\" text-anchor=\"end\">{}</text>",
            MARGIN + plot_width,
            series.name
        );
    }
    svg
}
