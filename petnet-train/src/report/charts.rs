//! Line charts, as SVG for the HTML page and as PNG files.

use anyhow::{Result, anyhow};
use petnet::metrics::CalibrationBin;
use petnet::train::{EpochReport, RateCurve};
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::encode::png;

const SIZE: (u32, u32) = (480, 340);
/// Name of the axis of curves by epoch.
const EPOCH: &str = "epoch";
const BLUE: RGBColor = RGBColor(37, 99, 170);
const ORANGE: RGBColor = RGBColor(214, 108, 24);
const COLOURS: [RGBColor; 4] = [BLUE, ORANGE, RGBColor(46, 139, 87), RGBColor(140, 80, 160)];
const GREY: RGBColor = RGBColor(150, 150, 150);

type Area<B> = DrawingArea<B, Shift>;
/// Name and points (x, y) of a curve.
pub(crate) type Curve = (String, Vec<(f64, f64)>);

/// One series of a chart.
struct Line<'a> {
    name: &'a str,
    colour: RGBColor,
    points: Vec<(f64, f64)>,
}

/// Title of a chart, and name and range of its axes.
struct Frame<'a> {
    title: &'a str,
    x: (&'a str, std::ops::Range<f64>),
    y: (&'a str, std::ops::Range<f64>),
}

/// Charts of loss, of another metric and of the learning rate by epoch; none for a single epoch.
pub(crate) fn training(
    history: &[EpochReport],
    metric: fn(&[EpochReport]) -> Result<String>,
) -> Result<Vec<String>> {
    match history {
        [] | [_] => Ok(Vec::new()),
        _ => Ok(vec![loss_curves(history)?, metric(history)?, learning_rate(history)?]),
    }
}

/// Loss by epoch, training and validation.
fn loss_curves(history: &[EpochReport]) -> Result<String> {
    curves(history, "Loss", |e| (e.train_loss, e.val_loss))
}

/// Accuracy by epoch, training and validation.
pub(crate) fn accuracy_curves(history: &[EpochReport]) -> Result<String> {
    curves(history, "Accuracy", |e| (e.train_accuracy, e.val_accuracy))
}

/// Mean average precision on validation images by epoch.
pub(crate) fn precision_curve(history: &[EpochReport]) -> Result<String> {
    let points = history.iter().filter_map(|e| Some((e.epoch as f64, e.val_map?))).collect();
    let lines = [Line { name: "validation", colour: ORANGE, points }];
    let frame = history_frame("Mean average precision", &lines, history.len());
    svg(|area| draw(area, &frame, &lines))
}

/// Precision over recall, one curve per class.
pub(crate) fn precision_recall(curves: &[Curve]) -> Result<String> {
    let lines: Vec<_> = coloured(curves).collect();
    let (x, y) = (("recall", 0.0..1.0), ("precision", 0.0..1.02));
    let frame = Frame { title: "Precision-recall curve", x, y };
    svg(|area| draw(area, &frame, &lines))
}

/// Learning rate by epoch.
fn learning_rate(history: &[EpochReport]) -> Result<String> {
    let points: Vec<_> = history.iter().map(|e| (e.epoch as f64, e.learning_rate)).collect();
    let top = points.iter().map(|p| p.1).fold(0.0, f64::max) * 1.1;
    let end = history.len().max(2) as f64;
    let frame = Frame { title: "Learning rate", x: (EPOCH, 1.0..end), y: ("", 0.0..top.max(1e-9)) };
    svg(|area| draw(area, &frame, &[Line { name: "rate", colour: BLUE, points }]))
}

/// Loss and accuracy side by side as a PNG.
pub(crate) fn loss_curves_png(history: &[EpochReport]) -> Result<Vec<u8>> {
    bitmap((SIZE.0 * 2, SIZE.1), |area| {
        let halves = area.split_evenly((1, 2));
        let loss = history_lines(history, |e| (e.train_loss, e.val_loss));
        let accuracy = history_lines(history, |e| (e.train_accuracy, e.val_accuracy));
        draw(&halves[0], &history_frame("Loss", &loss, history.len()), &loss)?;
        draw(&halves[1], &history_frame("Accuracy", &accuracy, history.len()), &accuracy)
    })
}

/// Loss over the learning rate of a range test as a PNG, with the suggestion marked.
pub(crate) fn rate_curve_png(curve: &RateCurve, suggestion: Option<f64>) -> Result<Vec<u8>> {
    let points: Vec<_> = curve.points.iter().map(|p| (p.rate.log10(), p.loss)).collect();
    let ends = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)))
    };
    let (left, right) = ends(&mut points.iter().map(|p| p.0));
    let (low, high) = ends(&mut points.iter().map(|p| p.1));
    let margin = ((high - low) * 0.05).max(1e-3);
    let frame = Frame {
        title: "Learning-rate range test",
        x: ("log10 of the learning rate", left..right.max(left + 1e-3)),
        y: ("smoothed loss", low - margin..high + margin),
    };
    let mut lines = vec![Line { name: "loss", colour: BLUE, points }];
    if let Some(rate) = suggestion {
        let x = rate.log10();
        let points = vec![(x, low - margin), (x, high + margin)];
        lines.push(Line { name: "suggested", colour: ORANGE, points });
    }
    bitmap(SIZE, |area| draw(area, &frame, &lines))
}

/// True positive rate over false positive rate, one curve per class.
pub(crate) fn roc(curves: &[Curve]) -> Result<String> {
    let mut lines =
        vec![Line { name: "chance", colour: GREY, points: vec![(0.0, 0.0), (1.0, 1.0)] }];
    lines.extend(coloured(curves));
    let (x, y) = (("false positive rate", 0.0..1.0), ("true positive rate", 0.0..1.0));
    let frame = Frame { title: "ROC curve", x, y };
    svg(|area| draw(area, &frame, &lines))
}

/// Accuracy over confidence in bins; on the diagonal, confidence is calibrated.
pub(crate) fn reliability(bins: &[CalibrationBin]) -> Result<String> {
    let points = bins.iter().filter(|b| b.count > 0).map(|b| (b.confidence, b.accuracy)).collect();
    let lines = [
        Line { name: "calibrated", colour: GREY, points: vec![(0.0, 0.0), (1.0, 1.0)] },
        Line { name: "model", colour: BLUE, points },
    ];
    let (x, y) = (("confidence", 0.0..1.0), ("accuracy", 0.0..1.0));
    let frame = Frame { title: "Reliability diagram", x, y };
    svg(|area| draw(area, &frame, &lines))
}

/// Histograms of out-of-distribution scores, as shares of each group's images, and the threshold.
pub(crate) fn ood_scores(groups: &[(&str, &[f32])], threshold: f32) -> Result<String> {
    let values = groups.iter().flat_map(|(_, scores)| *scores).copied();
    let (low, high) =
        values.fold((threshold, threshold), |(low, high), score| (low.min(score), high.max(score)));
    let margin = ((high - low) * 0.02).max(1e-6);
    let (low, high) = (f64::from(low - margin), f64::from(high + margin));
    let outlines: Vec<Curve> = groups
        .iter()
        .map(|(name, scores)| (name.to_string(), outline(scores, low..high)))
        .collect();
    let mut lines: Vec<_> = coloured(&outlines).collect();
    let top = lines.iter().flat_map(|line| &line.points).map(|p| p.1).fold(0.0, f64::max) * 1.1;
    let x = f64::from(threshold);
    lines.push(Line { name: "threshold", colour: GREY, points: vec![(x, 0.0), (x, top)] });
    let frame = Frame {
        title: "Out-of-distribution score",
        x: ("score", low..high),
        y: ("share of images", 0.0..top.max(1e-9)),
    };
    svg(|area| draw(area, &frame, &lines))
}

/// The outline of a histogram over a range, as shares.
fn outline(scores: &[f32], range: std::ops::Range<f64>) -> Vec<(f64, f64)> {
    const BINS: usize = 40;
    let width = (range.end - range.start) / BINS as f64;
    let mut counts = [0usize; BINS];
    for score in scores {
        let bin = ((f64::from(*score) - range.start) / width) as usize;
        counts[bin.min(BINS - 1)] += 1;
    }
    let edge = |bin: usize| range.start + width * bin as f64;
    let total = scores.len().max(1) as f64;
    let steps = counts.iter().enumerate().flat_map(|(bin, count)| {
        let share = *count as f64 / total;
        [(edge(bin), share), (edge(bin + 1), share)]
    });
    [(range.start, 0.0)].into_iter().chain(steps).chain([(range.end, 0.0)]).collect()
}

/// A metric by epoch, one line per run.
pub(crate) fn overlaid(title: &str, runs: &[Curve]) -> Result<String> {
    let lines: Vec<_> = coloured(runs).collect();
    let last = runs.iter().flat_map(|(_, points)| points).map(|p| p.0).fold(0.0, f64::max);
    let frame = history_frame(title, &lines, last as usize);
    svg(|area| draw(area, &frame, &lines))
}

fn history_lines(
    history: &[EpochReport],
    figures: impl Fn(&EpochReport) -> (f64, f64),
) -> [Line<'static>; 2] {
    let points = |pick: &dyn Fn((f64, f64)) -> f64| {
        history.iter().map(|e| (e.epoch as f64, pick(figures(e)))).collect()
    };
    [
        Line { name: "training", colour: BLUE, points: points(&|f| f.0) },
        Line { name: "validation", colour: ORANGE, points: points(&|f| f.1) },
    ]
}

fn history_frame<'a>(title: &'a str, lines: &[Line<'_>], epochs: usize) -> Frame<'a> {
    let values = || lines.iter().flat_map(|line| &line.points).map(|p| p.1);
    let (low, high) = (values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max));
    let margin = ((high - low) * 0.1).max(0.01);
    let y = (low - margin).max(0.0)..high + margin;
    Frame { title, x: (EPOCH, 1.0..epochs.max(2) as f64), y: ("", y) }
}

fn curves(
    history: &[EpochReport],
    title: &str,
    figures: impl Fn(&EpochReport) -> (f64, f64),
) -> Result<String> {
    let lines = history_lines(history, figures);
    let frame = history_frame(title, &lines, history.len());
    svg(|area| draw(area, &frame, &lines))
}

/// Registers the bundled font with plotters, which measures text with it for SVG, too.
fn register_font() -> Result<()> {
    const FONT: &[u8] = include_bytes!("../../assets/DejaVuSans-ascii.ttf");
    plotters::style::register_font("sans-serif", FontStyle::Normal, FONT)
        .map_err(|_| anyhow!("the bundled font is damaged"))
}

/// One line per curve, in the colours of the charts.
fn coloured(curves: &[Curve]) -> impl Iterator<Item = Line<'_>> {
    curves.iter().zip(COLOURS.iter().cycle()).map(|((name, points), colour)| Line {
        name,
        colour: *colour,
        points: points.clone(),
    })
}

/// A PNG file of a size in pixels.
fn bitmap(
    (width, height): (u32, u32),
    paint: impl FnOnce(&Area<BitMapBackend<'_>>) -> Result<()>,
) -> Result<Vec<u8>> {
    register_font()?;
    let mut pixels = vec![255; (width * height * 3) as usize];
    {
        let area = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
        paint(&area)?;
        area.present().map_err(|e| anyhow!("{e}"))?;
    }
    png(&pixels, width, height)
}

fn svg(paint: impl FnOnce(&Area<SVGBackend<'_>>) -> Result<()>) -> Result<String> {
    register_font()?;
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        paint(&area)?;
        area.present().map_err(|e| anyhow!("{e}"))?;
    }
    Ok(text)
}

/// A number below an axis, without the rounding error of multiples of the step: 2, 0.3, 0.0005.
fn tick(value: &f64) -> String {
    ((value * 1e6).round() / 1e6).to_string()
}

fn draw<B: DrawingBackend>(area: &Area<B>, frame: &Frame<'_>, lines: &[Line<'_>]) -> Result<()> {
    let failed = |e: DrawingAreaErrorKind<B::ErrorType>| anyhow!("drawing {}: {e}", frame.title);
    area.fill(&WHITE).map_err(failed)?;
    // As few labels as there are epochs, so that no half epoch has one.
    let x_labels = if frame.x.0 == EPOCH { (frame.x.1.end as usize).min(6) } else { 6 };
    let mut chart = ChartBuilder::on(area)
        .caption(frame.title, ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(36)
        .y_label_area_size(52)
        .build_cartesian_2d(frame.x.1.clone(), frame.y.1.clone())
        .map_err(failed)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GREY.mix(0.3))
        .x_labels(x_labels)
        .y_labels(6)
        .x_desc(frame.x.0)
        .y_desc(frame.y.0)
        .x_label_formatter(&tick)
        .y_label_formatter(&tick)
        .label_style(("sans-serif", 12))
        .draw()
        .map_err(failed)?;
    for line in lines {
        let colour = line.colour;
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), colour.stroke_width(2)))
            .map_err(failed)?
            .label(line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::MiddleRight)
        .background_style(WHITE.mix(0.8))
        .border_style(GREY.mix(0.5))
        .label_font(("sans-serif", 12))
        .draw()
        .map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::outline;

    #[test]
    fn a_histogram_counts_every_score_once_including_both_ends() {
        let scores = [0.0, 0.01, 0.5, 1.0, 1.0];
        let points = outline(&scores, 0.0..1.0);
        let sum: f64 = points[1..81].iter().step_by(2).map(|point| point.1).sum();
        assert!((sum - 1.0).abs() < 1e-9, "{points:?}");
        assert_eq!((points[1].1, points[80].1), (0.4, 0.4));
    }
}
