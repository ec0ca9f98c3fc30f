//! The page: one function a section, in reading order.

use crate::draw::mask_overlay;
use crate::markup::{Markup, classed, element, optional, void};
use crate::{Chart, Cluster, Fact, Highlight, MaskPicture, Neighbour, NeighbourRow, Part, PcaPicture};
use crate::{Picture, ReportData, Result, Score, Table, reconstructions, skips};

/// A section of the page.
struct Section {
    id: &'static str,
    title: &'static str,
    body: Markup,
}

/// The report as one HTML page.
///
/// # Errors
/// A mask that does not fit its image, weights that do not fill their matrix, a prediction that has not the size of its
/// image, or a picture or chart that cannot be drawn.
pub fn render(data: &ReportData) -> Result<String> {
    let predicted = data.reconstructions.as_ref();
    let sections = [
        section("scores", "Scores", SCORES, Some(&data.scores), |items| {
            Ok([scores(items), data.tables.iter().map(table).collect()].into())
        })?,
        section("curves", "Curves", CURVES, Some(&data.charts), charts)?,
        section("skips", "Skip connections", skips::LEAD, data.skips.as_ref(), skips::body)?,
        section("masks", "What the student sees", MASKS, Some(&data.masks), masks)?,
        section("predictions", "Predictions", reconstructions::LEAD, predicted, reconstructions::body)?,
        section("features", "Feature maps", FEATURES, Some(&data.pca), maps)?,
        section("neighbours", "Nearest neighbours", NEIGHBOURS, Some(&data.neighbours), neighbours)?,
        section("clusters", "Clusters", CLUSTERS, Some(&data.clusters), clusters)?,
        Some(Section { id: "run", title: "Run and settings", body: run(data) }),
    ];
    let sections: Vec<Section> = sections.into_iter().flatten().collect();
    let body = element("div", &[("class", "frame")], [head(data), contents(&sections), main(sections)]);
    let head = element(
        "head",
        &[],
        [
            void("meta", &[("charset", "utf-8")]),
            void("meta", &[("name", "viewport"), ("content", "width=device-width, initial-scale=1")]),
            element("title", &[], format!("{} \u{b7} Occlude report", data.title)),
            element("style", &[], Markup::trusted(include_str!("style.css").to_owned())),
        ],
    );
    let html = element("html", &[("lang", "en")], [head, element("body", &[], body)]);
    Ok(format!("<!doctype html>\n{}\n", html.as_str()))
}

const SCORES: &str = "How well frozen features serve a task they were not trained for. Grey bars are what one gets without \
                      training; the distance to them is what the run has learned.";
const CURVES: &str = "Thin lines are what was recorded at each step (means of neighbours in a long run), thick lines their \
                      moving average; dashed lines are levels to compare with.";
const MASKS: &str = "Left the image, right what is left of it for the student. Grey patches are hidden; those with an \
                     amber frame have to be predicted from what is still visible.";
const FEATURES: &str = "The first three principal components of the patch features of one image, shown as red, green and \
                        blue. Patches of one colour are alike to the network. Look for colours that follow objects and \
                        their parts; noise or plain gradients mean that little more than position was learned.";
const NEIGHBOURS: &str = "On the left an image, then the images whose features are most like its own, with their cosine \
                          similarity. A green frame marks the same class. Labels are only for the reader: training saw none.";
const CLUSTERS: &str = "Some of the patches that the network assigns to one prototype, and the prototype's share of all \
                        patches. A good prototype shows one texture, part or situation, not one colour.";

/// A section of the items of a part, or of the reason why there are none; nothing where the method has no such part.
fn section<T>(
    id: &'static str,
    title: &'static str,
    lead: &str,
    part: Option<&Part<T>>,
    body: impl FnOnce(&[T]) -> Result<Markup>,
) -> Result<Option<Section>> {
    let Some(part) = part else { return Ok(None) };
    let body = match part.items() {
        Ok(items) => [classed("p", "lead", lead), body(items)?].into(),
        Err(why) => classed("p", "absent", why),
    };
    Ok(Some(Section { id, title, body }))
}

fn head(data: &ReportData) -> Markup {
    let highlights = data.highlights.iter().map(|Highlight { value, label, note }| {
        element(
            "div",
            &[],
            [
                element("dt", &[], label.as_str()),
                element("dd", &[("class", "value")], value.as_str()),
                optional("dd", "note", note),
            ],
        )
    });
    let highlights: Vec<Markup> = highlights.collect();
    element(
        "header",
        &[],
        [
            element("p", &[("class", "mark")], "Occlude \u{b7} training report"),
            element("h1", &[], data.title.as_str()),
            optional("p", "summary", &data.summary),
            if highlights.is_empty() {
                Markup::default()
            } else {
                element("dl", &[("class", "highlights")], highlights)
            },
        ],
    )
}

fn contents(sections: &[Section]) -> Markup {
    let links = sections
        .iter()
        .map(|Section { id, title, .. }| element("li", &[], element("a", &[("href", &format!("#{id}"))], *title)));
    element("nav", &[("aria-label", "Contents")], element("ol", &[], links.collect::<Vec<_>>()))
}

fn main(sections: Vec<Section>) -> Markup {
    let sections = sections.into_iter().map(|Section { id, title, body }| {
        let heading = format!("{id}-title");
        let title = element("h2", &[("id", &heading)], title);
        element("section", &[("id", id), ("aria-labelledby", &heading)], [title, body])
    });
    element("main", &[], sections.collect::<Vec<_>>())
}

fn scores(scores: &[Score]) -> Markup {
    let rows = scores.iter().map(|Score { name, percent, note, baseline }| {
        let width = format!("width:{:.1}%", percent.clamp(0.0, 100.0));
        let bar = element("span", &[("class", "track")], element("span", &[("style", &width)], ""));
        let name = element("td", &[], [name.as_str().into(), optional("small", "setting", note)]);
        let value = element("td", &[("class", "number")], format!("{percent:.1} %"));
        let class = if *baseline { "baseline" } else { "learned" };
        element("tr", &[("class", class)], [name, element("td", &[("class", "bar")], bar), value])
    });
    let titles = [
        element("th", &[("scope", "col")], "Protocol"),
        // The bars repeat the number beside them.
        element("th", &[("scope", "col"), ("class", "bar"), ("aria-hidden", "true")], ""),
        element("th", &[("scope", "col"), ("style", "text-align:right")], "Accuracy"),
    ];
    let head = element("thead", &[], element("tr", &[], titles));
    element("table", &[], [head, element("tbody", &[], rows.collect::<Vec<_>>())])
}

fn table(Table { title, note, columns, rows }: &Table) -> Markup {
    let titles: Vec<Markup> = columns.iter().enumerate().map(|(place, text)| cell("th", place, text)).collect();
    let rows = rows.iter().map(|row| {
        element("tr", &[], row.iter().enumerate().map(|(place, text)| cell("td", place, text)).collect::<Vec<_>>())
    });
    let body = element("tbody", &[], rows.collect::<Vec<_>>());
    let table = element("table", &[], [element("thead", &[], element("tr", &[], titles)), body]);
    element("div", &[("class", "extra")], [element("h3", &[], title.as_str()), optional("p", "setting", note), table])
}

/// The first column holds names, the others numbers.
fn cell(tag: &str, column: usize, text: &str) -> Markup {
    let scope = [("scope", "col")];
    let mut attributes = if tag == "th" { scope.to_vec() } else { Vec::new() };
    if column > 0 {
        attributes.push(("class", "number"));
    }
    element(tag, &attributes, text)
}

fn charts(charts: &[Chart]) -> Result<Markup> {
    let figures: Vec<Markup> = charts.iter().map(chart).collect::<Result<_>>()?;
    Ok(element("div", &[("class", "charts")], figures))
}

fn chart(chart: &Chart) -> Result<Markup> {
    let unit = if chart.unit.is_empty() {
        Markup::default()
    } else {
        [" ".into(), classed("span", "unit", &chart.unit)].into()
    };
    let title = element("h3", &[], [chart.title.as_str().into(), unit]);
    let Some(svg) = chart.svg()? else {
        let empty = element("p", &[("class", "absent")], "There is no finite point to draw.");
        return Ok(element("figure", &[("class", "chart")], [title, empty]));
    };
    let keys = chart.legend().into_iter().map(|(name, color, dashed)| {
        let (class, style) = (if dashed { "dashed" } else { "solid" }, format!("border-color:{color}"));
        element("li", &[], [element("i", &[("class", class), ("style", &style)], ""), name.into()])
    });
    let legend = element("ul", &[("class", "legend")], keys.collect::<Vec<_>>());
    let drawing = element("div", &[("role", "img"), ("aria-label", &chart.spoken())], Markup::trusted(svg));
    let caption = element("figcaption", &[], chart.caption.as_str());
    Ok(element("figure", &[("class", "chart")], [title, legend, drawing, caption]))
}

fn masks(masks: &[MaskPicture]) -> Result<Markup> {
    let pairs: Vec<Markup> = masks.iter().enumerate().map(|(i, mask)| mask_pair(i + 1, mask)).collect::<Result<_>>()?;
    Ok(element("div", &[("class", "pairs")], pairs))
}

fn mask_pair(number: usize, mask: &MaskPicture) -> Result<Markup> {
    let overlay = mask_overlay(&mask.image, mask.rows, mask.cols, &mask.hidden, &mask.predicted)?;
    let hidden = mask.hidden.iter().filter(|hidden| **hidden).count();
    let caption = format!("{hidden} of {} patches hidden, {} predicted", mask.hidden.len(), mask.predicted.len());
    let pictures = [
        img(&mask.image, &format!("Training image {number}"))?,
        img(&overlay, &format!("Training image {number} with {caption}"))?,
    ];
    let caption = element("figcaption", &[], format!("{caption}."));
    Ok(element("figure", &[], [element("div", &[("class", "pair")], pictures), caption]))
}

fn maps(rows: &[PcaPicture]) -> Result<Markup> {
    let rows: Vec<Markup> = rows.iter().enumerate().map(|(i, row)| map_row(i + 1, row)).collect::<Result<_>>()?;
    Ok(element("div", &[("class", "maps")], rows))
}

fn map_row(number: usize, row: &PcaPicture) -> Result<Markup> {
    let mut columns = vec![column(&row.image, &format!("Image {number}"), "image")?];
    for map in &row.maps {
        columns.push(column(&map.picture, &format!("Feature map of image {number}: {}", map.name), &map.name)?);
    }
    Ok(element("div", &[("class", "map-row")], columns))
}

/// A picture with its name under it.
pub(crate) fn column(picture: &Picture, alt: &str, name: &str) -> Result<Markup> {
    Ok(element("div", &[], [img(picture, alt)?, element("p", &[], name)]))
}

fn neighbours(rows: &[NeighbourRow]) -> Result<Markup> {
    let rows: Vec<Markup> = rows.iter().map(neighbour_row).collect::<Result<_>>()?;
    Ok(element("div", &[("class", "rows")], rows))
}

fn neighbour_row(row: &NeighbourRow) -> Result<Markup> {
    let named = |label: &str| if label.is_empty() { String::new() } else { format!(", class {label}") };
    let query =
        [img(&row.query, &format!("Image asked for{}", named(&row.label)))?, optional("p", "label", &row.label)];
    let mut tiles = vec![element("div", &[("class", "tile query")], query)];
    for (index, Neighbour { picture, label, similarity }) in row.neighbours.iter().enumerate() {
        let class = match label {
            _ if label.is_empty() || row.label.is_empty() => "tile",
            _ if *label == row.label => "tile same",
            _ => "tile other",
        };
        let similarity = format!("{similarity:.2}").replace('-', "\u{2212}");
        let alt = format!("Neighbour {}{}, similarity {similarity}", index + 1, named(label));
        let text = element("p", &[], [label.as_str().into(), element("small", &[], similarity)]);
        tiles.push(element("div", &[("class", class)], [img(picture, &alt)?, text]));
    }
    Ok(element("div", &[("class", "row")], tiles))
}

fn clusters(clusters: &[Cluster]) -> Result<Markup> {
    let clusters: Vec<Markup> = clusters.iter().map(cluster).collect::<Result<_>>()?;
    Ok(element("div", &[("class", "clusters")], clusters))
}

fn cluster(Cluster { name, share, patches }: &Cluster) -> Result<Markup> {
    let share = classed("span", "unit", &format!("{share:.2} %"));
    let title = element("h3", &[], [name.as_str().into(), " ".into(), share]);
    let images = patches.iter().enumerate().map(|(i, patch)| img(patch, &format!("Patch {} of {name}", i + 1)));
    let images: Vec<Markup> = images.collect::<Result<_>>()?;
    Ok(element("div", &[("class", "cluster")], [title, element("div", &[("class", "patches")], images)]))
}

fn run(data: &ReportData) -> Markup {
    let facts = data.facts.iter().map(|Fact { name, value }| {
        element("div", &[], [element("dt", &[], name.as_str()), element("dd", &[], value.as_str())])
    });
    let facts: Vec<Markup> = facts.collect();
    let facts = if facts.is_empty() {
        element("p", &[("class", "absent")], "No facts about the run were recorded.")
    } else {
        element("dl", &[("class", "facts")], facts)
    };
    let settings = if data.settings.trim().is_empty() {
        element("p", &[("class", "absent")], "The settings of the run were not recorded.")
    } else {
        let text = element("pre", &[("tabindex", "0")], element("code", &[], data.settings.as_str()));
        element("details", &[], [element("summary", &[], "All settings, as resolved (TOML)"), text])
    };
    [facts, settings].into()
}

fn img(picture: &Picture, alt: &str) -> Result<Markup> {
    let (width, height) = (picture.width(), picture.height());
    let class = if picture.has_hard_edges() { "pixels" } else { "photo" };
    let (width, height, source) = (width.to_string(), height.to_string(), picture.data_uri()?);
    let attributes = [("class", class), ("src", source.as_str()), ("width", &width), ("height", &height), ("alt", alt)];
    Ok(void("img", &attributes))
}
