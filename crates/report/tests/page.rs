//! The page as a reader's browser sees it: balanced, alone, decodable, escaped.
// clippy.toml frees test functions; helpers beside them need it said.
#![allow(clippy::unwrap_used, clippy::panic)]

use base64::Engine;
use occlude_report::{
    Baseline, Chart, Cluster, Curve, Fact, Highlight, MaskPicture, Neighbour, NeighbourRow, Part, PcaMap, PcaPicture,
    Picture, Reconstruction, ReportData, ReportError, Score, SkipMatrix, Table, render,
};

const HOSTILE: &str = "<script>alert('\"&</title></style>--><img src=x onerror=alert(1)>";

fn picture(side: usize) -> Picture {
    Picture::from_fn(side, side, |x, y| [(x * 7) as u8, (y * 11) as u8, 90]).unwrap()
}

/// Three decoder layers over four encoder blocks.
fn skips(label: String, first: f64) -> SkipMatrix {
    let weights = (0..12).map(|cell| if cell == 0 { first } else { f64::from(cell) / 5.0 - 1.0 }).collect();
    SkipMatrix { label, rows: 3, cols: 4, weights }
}

/// A page with everything on it, each string of the caller being `text`.
fn full(text: &str) -> ReportData {
    let text = || text.to_owned();
    let ramp = |n: u32| (0..n).map(|i| (f64::from(i), 5.0 - f64::from(i % 97) / 50.0)).collect::<Vec<_>>();
    let odd = Chart {
        title: text(),
        unit: text(),
        over: text(),
        caption: text(),
        curves: vec![Curve::new(text(), ramp(9))],
        baselines: vec![Baseline { name: text(), value: 3.0 }],
        smooth: false,
    };
    let neighbour = |label: &str| Neighbour { picture: picture(32), label: label.into(), similarity: -0.25 };
    ReportData {
        title: text(),
        summary: text(),
        highlights: vec![Highlight { value: text(), label: text(), note: text() }],
        scores: vec![Score::of(text(), 70.0, text()), Score::baseline(text(), 130.0, "")].into(),
        tables: vec![Table {
            title: text(),
            note: text(),
            columns: vec![text(), text()],
            rows: vec![vec![text(), text()]; 2],
        }],
        charts: vec![odd, Chart::losses(vec![Curve::new(text(), ramp(5_000))])].into(),
        skips: Some(vec![skips(text(), 0.0), skips(text(), f64::NAN)].into()),
        masks: vec![MaskPicture {
            image: picture(32),
            rows: 4,
            cols: 4,
            hidden: (0..16).map(|cell| cell > 5).collect(),
            predicted: vec![7],
        }]
        .into(),
        reconstructions: Some(
            vec![Reconstruction { image: picture(32), ranks: picture(8), predicted: picture(32), note: text() }].into(),
        ),
        pca: vec![PcaPicture { image: picture(64), maps: vec![PcaMap { name: text(), picture: picture(8) }] }].into(),
        neighbours: vec![NeighbourRow {
            query: picture(32),
            label: text(),
            neighbours: vec![neighbour(&text()), neighbour("another"), neighbour("")],
        }]
        .into(),
        clusters: vec![Cluster { name: text(), share: 1.5, patches: vec![picture(8), picture(8)] }].into(),
        facts: vec![Fact::new(text(), text())],
        settings: format!("[data]\npath = \"{}\"\n", text()),
    }
}

/// Start and end tags in order, without comments; fails where they do not balance.
fn tags(html: &str) -> Vec<String> {
    const VOID: [&str; 2] = ["img", "meta"];
    let (mut open, mut seen): (Vec<String>, Vec<String>) = Default::default();
    let mut rest = html.strip_prefix("<!doctype html>").unwrap();
    while let Some((text, tail)) = rest.split_once('<') {
        // A style sheet may hold `>`; here it is a selector's.
        assert!(!text.contains('>') || open.last().is_some_and(|tag| tag == "style"), "stray > in {text:?}");
        let (tag, after) = tail.split_once('>').unwrap();
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name), "tags do not balance");
            continue;
        }
        let name = tag.split([' ', '/']).next().unwrap();
        assert_eq!(tag.matches('"').count() % 2, 0, "quotes of {tag}");
        seen.push(tag.to_owned());
        if !tag.ends_with('/') && !VOID.contains(&name) {
            open.push(name.to_owned());
        }
    }
    assert!(open.is_empty(), "left open: {open:?}");
    seen
}

/// Values of an attribute over all tags.
fn attribute<'a>(tags: &'a [String], name: &str) -> Vec<&'a str> {
    let start = format!(" {name}=\"");
    tags.iter().filter_map(|tag| Some(tag.split_once(&start)?.1.split_once('"')?.0)).collect()
}

#[test]
fn a_page_is_balanced_and_alone() {
    let html = render(&full("plain words")).unwrap();
    let tags = tags(&html);
    let ids = attribute(&tags, "id");
    for link in attribute(&tags, "href") {
        assert!(ids.contains(&link.strip_prefix('#').unwrap()), "{link} leads nowhere");
    }
    assert!(attribute(&tags, "src").iter().all(|source| source.starts_with("data:image/png;base64,")));
    for outside in ["http:", "https:", "//", "url(", "@import", "<script", "<link", "<iframe"] {
        // Base64 may hold two slashes in a row.
        let found = html.split("data:image/png;base64,").any(|part| {
            let part = if part.starts_with("<!doctype") { part } else { part.split_once('"').map_or("", |(_, p)| p) };
            part.contains(outside)
        });
        assert!(!found, "the page holds {outside}");
    }
}

#[test]
fn every_image_decodes_and_is_described() {
    let tags = tags(&render(&full("words")).unwrap());
    let images: Vec<String> = tags.into_iter().filter(|tag| tag.starts_with("img")).collect();
    assert_eq!(images.len(), 2 + 3 + 2 + 4 + 2, "mask pair, prediction, image and map, query and neighbours, patches");
    let sources = attribute(&images, "src");
    let sides = attribute(&images, "width");
    for (source, side) in sources.iter().zip(sides) {
        let encoded = source.strip_prefix("data:image/png;base64,").unwrap();
        let file = base64::engine::general_purpose::STANDARD.decode(encoded).unwrap();
        assert_eq!(image::load_from_memory(&file).unwrap().width().to_string(), side);
    }
    let alts = attribute(&images, "alt");
    assert!(alts.len() == images.len() && alts.iter().all(|alt| !alt.is_empty()));
}

#[test]
fn the_structure_is_as_written() {
    let html = render(&full("words")).unwrap();
    let outline: Vec<String> = tags(&html)
        .iter()
        .filter(|tag| ["section", "figure", "h1", "table", "svg", "details"].iter().any(|name| tag.starts_with(name)))
        .map(|tag| {
            let id = tag.split_once(" id=\"").map_or("", |(_, rest)| rest.split('"').next().unwrap());
            format!("{} {id}", tag.split(' ').next().unwrap()).trim().to_owned()
        })
        .collect();
    let expected = "h1, section scores, table, table, section curves, figure, svg, figure, svg, section skips, figure, svg, \
                    figure, svg, svg, section masks, figure, section predictions, figure, section features, \
                    section neighbours, section clusters, section run, details";
    assert_eq!(outline.join(", "), expected);
    for class in ["tile query", "tile same", "tile other", "absent"] {
        let count = html.matches(&format!("class=\"{class}\"")).count();
        assert_eq!(count, usize::from(class != "absent"), "{class}");
    }
}

#[test]
fn hostile_names_stay_text() {
    let (hostile, plain) = (render(&full(HOSTILE)).unwrap(), render(&full("words")).unwrap());
    let names = |html: &str| -> Vec<String> {
        tags(html).iter().map(|tag| tag.split(' ').next().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&hostile), names(&plain), "a name became a tag");
    assert!(!hostile.contains("<script") && hostile.contains("&lt;script&gt;"));
}

#[test]
fn what_is_absent_is_left_out_with_a_reason() {
    let data = ReportData {
        title: "bare".into(),
        scores: Part::absent("No labels were given, so nothing was scored."),
        charts: Vec::new().into(),
        ..ReportData::default()
    };
    let html = render(&data).unwrap();
    tags(&html);
    assert!(html.contains("No labels were given, so nothing was scored."));
    assert_eq!(html.matches("<section").count(), 7);
    assert_eq!(html.matches("class=\"absent\"").count(), 8, "six parts, the facts and the settings");
    assert!(!html.contains("<img") && !html.contains("<table") && !html.contains("<svg"));
}

#[test]
fn what_a_method_does_not_have_is_not_mentioned() {
    let capi = ReportData { skips: None, reconstructions: None, ..full("words") };
    let html = render(&capi).unwrap();
    for word in ["skip", "encoder block", "id=\"predictions\"", "#predictions"] {
        assert!(!html.contains(word), "{word}");
    }
    // A method that has them says why they are missing.
    let why = "The run ended before its first epoch.";
    let bare = ReportData { skips: Some(Part::absent(why)), reconstructions: Some(Vec::new().into()), ..full("words") };
    let html = render(&bare).unwrap();
    assert!(html.contains(why) && html.contains("href=\"#skips\"") && html.contains("href=\"#predictions\""));
}

#[test]
fn a_part_of_wrong_size_is_an_error() {
    let short = SkipMatrix { weights: vec![1.0], ..skips("epoch 1".into(), 0.0) };
    let refused = render(&ReportData { skips: Some(vec![short].into()), ..ReportData::default() });
    assert!(matches!(refused, Err(ReportError::Skips { rows: 3, cols: 4, got: 1, .. })));
    let row = Reconstruction { image: picture(32), ranks: picture(8), predicted: picture(30), note: String::new() };
    let refused = render(&ReportData { reconstructions: Some(vec![row].into()), ..ReportData::default() });
    assert!(matches!(refused, Err(ReportError::Prediction { image: (32, 32), predicted: (30, 30) })));
}

#[test]
fn equal_data_give_equal_bytes() {
    assert_eq!(render(&full("words")).unwrap(), render(&full("words")).unwrap());
}

#[test]
fn a_mask_that_does_not_fit_is_an_error() {
    let mask = MaskPicture { image: picture(32), rows: 4, cols: 4, hidden: vec![true; 15], predicted: vec![] };
    let refused = render(&ReportData { masks: vec![mask].into(), ..ReportData::default() });
    assert!(matches!(refused, Err(ReportError::Mask { rows: 4, cols: 4, .. })));
}
