//! The medians as a picture: a panel for each work, a bar for each tool, a line over the runs' times.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::figures::{Figures, Line};
use super::work::Work;

const COLUMNS: usize = 2;
const PANEL: (u32, u32) = (480, 250);
const FONT: (&str, u32) = ("sans-serif", 13);
const CAPTION: (&str, u32) = ("sans-serif", 16);
const OURS: RGBColor = RGBColor(0xd9, 0x5f, 0x02);
const PEERS: RGBColor = RGBColor(0x7f, 0x8c, 0x9b);
/// Height of a bar, of the height that each has.
const THICKNESS: f64 = 0.7;

/// Draws what was measured.
pub fn draw(file: &Path, lines: &[Line]) -> Result<()> {
    let mut works: Vec<Work> =
        lines.iter().filter(|line| line.figures().is_some()).map(|line| line.work).collect();
    works.dedup();
    let rows = works.len().div_ceil(COLUMNS).max(1);
    let size = (PANEL.0 * u32::try_from(COLUMNS)?, PANEL.1 * u32::try_from(rows)?);
    let whole = SVGBackend::new(file, size).into_drawing_area();
    whole.fill(&WHITE).map_err(|error| not_drawn(file, &error))?;
    for (work, panel) in works.into_iter().zip(whole.split_evenly((rows, COLUMNS))) {
        draw_work(&panel, work, lines).map_err(|error| not_drawn(file, error.as_ref()))?;
    }
    whole.present().with_context(|| format!("writing {}", file.display()))
}

fn not_drawn(file: &Path, error: &dyn std::error::Error) -> anyhow::Error {
    anyhow!("drawing {}: {error}", file.display())
}

fn draw_work(
    panel: &DrawingArea<SVGBackend<'_>, Shift>,
    work: Work,
    lines: &[Line],
) -> Result<(), Box<dyn std::error::Error>> {
    let bars: Vec<(String, &Figures)> = lines
        .iter()
        .filter(|line| line.work == work)
        .filter_map(|line| Some((line.tool.to_string(), line.figures()?)))
        .collect();
    let longest = bars.iter().flat_map(|(_, figures)| &figures.runs_s).copied().fold(0.0, f64::max);
    let count = i32::try_from(bars.len())?;
    let mut chart = ChartBuilder::on(panel)
        .caption(format!("{work}, seconds"), CAPTION)
        .margin(10)
        .margin_right(30)
        .x_label_area_size(22)
        .y_label_area_size(120)
        // The first tool on top.
        .build_cartesian_2d(0.0..longest * 1.08, f64::from(count)..0.0)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .y_labels(0)
        .x_labels(6)
        .max_light_lines(1)
        .label_style(FONT)
        .draw()?;
    for (place, (name, figures)) in (0..count).map(f64::from).zip(&bars) {
        let (top, middle) = (place + (1.0 - THICKNESS) / 2.0, place + 0.5);
        let color = if name.starts_with("somersault") { OURS } else { PEERS };
        let bar = [(0.0, top), (figures.median_s, top + THICKNESS)];
        chart.draw_series([Rectangle::new(bar, color.filled())])?;
        let slowest = figures.runs_s.iter().copied().fold(0.0, f64::max);
        let spread = vec![(slowest - figures.spread_s, middle), (slowest, middle)];
        chart.draw_series([PathElement::new(spread, BLACK)])?;
        let (x, y) = chart.backend_coord(&(0.0, middle));
        let style = TextStyle::from(FONT).pos(Pos::new(HPos::Right, VPos::Center));
        let (left, top) = panel.get_base_pixel();
        panel.draw_text(name, &style, (x - 6 - left, y - top))?;
    }
    Ok(())
}
