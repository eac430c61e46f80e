//! The loss over a run, as a picture.

use std::fmt::Write;

/// A point of the curve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// From 1.
    pub step: u64,
    /// Of the step.
    pub loss: f64,
    /// Of the held-out part, where it was looked at.
    pub validation: Option<f64>,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 60.0;
const BOTTOM: f64 = 40.0;
const TOP: f64 = 30.0;
const RIGHT: f64 = 20.0;

/// An SVG of the training loss (with its mean over a hundredth of the run) and the validation loss.
#[must_use]
pub fn svg(points: &[Point]) -> String {
    let finite = || {
        points
            .iter()
            .flat_map(|point| [Some(point.loss), point.validation])
            .flatten()
            .filter(|x| x.is_finite())
    };
    let (low, high) =
        finite().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
    let (low, high) = if low < high { (low, high) } else { (low.min(0.0), high.max(1.0)) };
    let (low, high) = if low.is_finite() { (low, high) } else { (0.0, 1.0) };
    let last = points.last().map_or(1, |point| point.step).max(1) as f64;
    let x = |step: u64| LEFT + (WIDTH - LEFT - RIGHT) * step as f64 / last;
    let y = |loss: f64| HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (loss - low) / (high - low);
    let line = |values: &mut dyn Iterator<Item = (u64, f64)>| {
        let mut path = String::new();
        for (step, loss) in values.filter(|(_, loss)| loss.is_finite()) {
            let _ = write!(path, "{}{:.1} {:.1}", if path.is_empty() { "M" } else { "L" }, x(step), y(loss));
        }
        path
    };
    let window = points.len().div_ceil(100);
    let raw = line(&mut points.iter().map(|point| (point.step, point.loss)));
    let smooth = line(&mut points.chunks(window.max(1)).map(|part| {
        let mean = part.iter().map(|point| point.loss).sum::<f64>() / part.len() as f64;
        (part[part.len() / 2].step, mean)
    }));
    let held_out = line(&mut points.iter().filter_map(|point| Some((point.step, point.validation?))));

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for i in 0..=4 {
        let part = f64::from(i) / 4.0;
        let (loss, step) = (low + part * (high - low), (part * last).round() as u64);
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {0:.1}H{1}\" stroke=\"#ddd\"/><text x=\"{2}\" y=\"{3:.1}\" text-anchor=\"end\">{loss:.3}</text>\
             <text x=\"{4:.1}\" y=\"{5}\" text-anchor=\"middle\">{step}</text>",
            y(loss),
            WIDTH - RIGHT,
            LEFT - 6.0,
            y(loss) + 4.0,
            x(step),
            HEIGHT - BOTTOM + 18.0,
        );
    }
    let _ = write!(
        svg,
        "<path d=\"{raw}\" fill=\"none\" stroke=\"#b8cdf0\"/>\n\
         <path d=\"{smooth}\" fill=\"none\" stroke=\"#1f5fbf\" stroke-width=\"2\"/>\n\
         <path d=\"{held_out}\" fill=\"none\" stroke=\"#d2691e\" stroke-width=\"2\"/>\n\
         <text x=\"{LEFT}\" y=\"18\"><tspan fill=\"#1f5fbf\">training loss</tspan><tspan dx=\"16\" fill=\"#d2691e\">validation loss</tspan></text>\n\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">step</text>\n</svg>\n",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 6.0,
    );
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curve_lies_within_the_picture() {
        let points: Vec<Point> = (1..=500)
            .map(|step| Point {
                step,
                loss: if step == 7 { f64::NAN } else { 5.0 / step as f64 },
                validation: (step % 100 == 0).then_some(1.0),
            })
            .collect();
        let picture = svg(&points);
        let paths: Vec<&str> =
            picture.split("<path d=\"M").skip(6).map(|path| path.split('"').next().unwrap()).collect();
        let counts: Vec<usize> = paths.iter().map(|path| path.split('L').count()).collect();
        // 499 losses (one is NaN), 100 means (one of them is), 5 looks.
        assert_eq!(counts, [499, 99, 5]);
        for place in paths.iter().flat_map(|path| path.split('L')) {
            let (x, y) = place.split_once(' ').unwrap();
            assert!((LEFT..=WIDTH - RIGHT).contains(&x.parse().unwrap()), "{place}");
            assert!((TOP..=HEIGHT - BOTTOM).contains(&y.parse().unwrap()), "{place}");
        }
    }

    #[test]
    fn nothing_and_one_point_make_a_picture() {
        for points in [vec![], vec![Point { step: 1, loss: 2.0, validation: None }]] {
            let picture = svg(&points);
            assert!(picture.ends_with("</svg>\n") && !picture.contains("NaN") && !picture.contains("inf"));
        }
    }
}
