//! An order as it unfolds: an SVG that a style sheet moves, without a script.

use super::order::Drawn;
use super::{OrderPicture, add, side_by_side};
use crate::{ReportError, Result};
use std::collections::BTreeSet;

/// Of a cycle: until when all parts stay, when they are gone, when the first appears again, and when the last one has.
/// It begins with the finished picture, which is what a thumbnail shows.
const STAY: f64 = 0.12;
const GONE: f64 = 0.15;
const FIRST: f64 = 0.18;
const LAST: f64 = 0.96;
/// How long a part takes to appear, at most; many parts have less time each.
const APPEAR: f64 = 0.015;
/// A cell that has not been predicted yet.
const UNLIT: &str = "#e4e7ea";

/// One SVG of all pictures, side by side, whose cells light up part by part in their order, and then again; a cycle
/// takes `seconds`, the same for all pictures. It needs no script. Where nothing moves, on paper, in viewers that know
/// no animation, and for readers who asked for less motion, it shows the finished picture, as
/// [`orders`](super::orders) does.
///
/// # Errors
/// As [`orders`](super::orders); a cycle of less than 1 or more than 600 seconds.
pub fn animation(pictures: &[OrderPicture], seconds: f64) -> Result<String> {
    if !(1.0..=600.0).contains(&seconds) {
        return Err(ReportError::Seconds { seconds });
    }
    let drawn: Vec<Drawn<'_>> = pictures.iter().map(Drawn::new).collect::<Result<_>>()?;
    side_by_side(pictures.len(), &style(&drawn, seconds), |at, svg| {
        let (drawn, picture) = (&drawn[at], &pictures[at]);
        drawn.image(svg, &pictures[..at])?;
        if picture.image.is_none() {
            (0..picture.ranks.len()).for_each(|index| drawn.cell_in(svg, index, UNLIT));
        }
        drawn.over(svg, |svg| {
            each_part(svg, drawn, 0, |svg, place| {
                drawn.parts[place].iter().for_each(|index| drawn.cell(svg, *index));
            });
        });
        if picture.arrows {
            each_part(svg, drawn, 1, |svg, place| drawn.arrow(svg, place));
            each_part(svg, drawn, 0, |svg, place| drawn.disc(svg, place));
        }
        Ok(picture.title.clone())
    })
}

/// What `draw` adds of each part from the `first` on, in a group that appears with the part.
fn each_part(svg: &mut String, drawn: &Drawn<'_>, first: usize, draw: impl Fn(&mut String, usize)) {
    let count = drawn.parts.len();
    for place in first..count {
        add(svg, format_args!("<g class=\"part {}\">\n", class(place, count)));
        draw(svg, place);
        svg.push_str("</g>\n");
    }
}

/// The name of a moment: pictures of as many parts share it.
fn class(place: usize, count: usize) -> String {
    format!("p{place}of{count}")
}

/// When each part appears. Motion is asked for only where it is welcome, so that everything else shows all parts.
fn style(drawn: &[Drawn<'_>], seconds: f64) -> String {
    let counts: BTreeSet<usize> = drawn.iter().map(|drawn| drawn.parts.len()).collect();
    let moments = || counts.iter().flat_map(|count| (0..*count).map(|place| (place, *count)));
    let mut style = String::from("<style>\n");
    for (place, count) in moments() {
        let turn = (LAST - FIRST) / count as f64;
        let from = 100.0 * (FIRST + turn * place as f64);
        let (until, name) = (from + 100.0 * turn.min(APPEAR), class(place, count));
        let (stay, gone) = (100.0 * STAY, 100.0 * GONE);
        let before = format!("0%,{stay:.0}%{{opacity:1}}{gone:.0}%,{from:.3}%{{opacity:0}}");
        add(&mut style, format_args!("@keyframes {name}{{{before}{until:.3}%,100%{{opacity:1}}}}\n"));
    }
    style.push_str("@media screen and (prefers-reduced-motion:no-preference){\n");
    add(&mut style, format_args!(".part{{animation:{seconds}s linear infinite}}\n"));
    for (place, count) in moments() {
        let name = class(place, count);
        add(&mut style, format_args!(".{name}{{animation-name:{name}}}\n"));
    }
    style.push_str("}\n</style>\n");
    style
}

#[cfg(test)]
mod tests {
    use super::{OrderPicture, animation};
    use crate::{Picture, ReportError};

    fn picture(ranks: &[u32]) -> OrderPicture {
        OrderPicture { title: "a <b>".into(), rows: 1, cols: ranks.len(), ranks: ranks.into(), ..Default::default() }
    }

    /// When a part appears, in percent of the cycle: begin and end.
    fn moment(svg: &str, name: &str) -> (f64, f64) {
        let rule = svg.split(&format!("@keyframes {name}{{0%,12%{{opacity:1}}15%,")).nth(1).unwrap();
        let (from, rest) = rule.split_once("%{opacity:0}").unwrap();
        (from.parse().unwrap(), rest.split_once('%').unwrap().0.parse().unwrap())
    }

    #[test]
    fn parts_appear_one_after_the_other_in_one_cycle() {
        let raster: Vec<u32> = (0..16).collect();
        let svg = animation(&[picture(&[1, 0, 2, 1]), picture(&raster)], 8.0).unwrap();
        for count in [3, 16] {
            let moments: Vec<(f64, f64)> =
                (0..count).map(|place| moment(&svg, &format!("p{place}of{count}"))).collect();
            assert!(moments.iter().all(|(from, until)| from < until && *from >= 18.0 && *until <= 96.0), "{moments:?}");
            assert!(moments.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{moments:?}");
        }
        assert_eq!(svg.matches("animation:8s linear infinite").count(), 1, "one cycle for all");
        assert!(svg.contains("a &lt;b&gt;") && svg.ends_with("</svg>\n"));
    }

    #[test]
    fn a_part_is_a_group_of_its_cells() {
        let svg = animation(&[picture(&[1, 0, 2, 1])], 8.0).unwrap();
        let cells = |place: usize| {
            let group = svg.split(&format!("<g class=\"part p{place}of3\">")).nth(1).unwrap();
            group.split_once("</g>").unwrap().0.matches("<rect").count()
        };
        assert_eq!([0, 1, 2].map(cells), [1, 2, 1]);
        assert_eq!(svg.matches("<g").count(), svg.matches("</g>").count());
    }

    #[test]
    fn at_rest_it_is_the_finished_picture() {
        let svg = animation(&[picture(&[1, 0, 2])], 2.5).unwrap();
        let (sheet, drawing) = svg.split_once("</style>").unwrap();
        let asked = sheet.find("@media screen and (prefers-reduced-motion:no-preference)").unwrap();
        assert!(sheet.find("animation").unwrap() > asked, "nothing moves unless motion is welcome");
        assert!(!drawing.contains("opacity"), "and nothing is hidden");
        for colour in ["#440154", "#21918c", "#fde725"] {
            assert_eq!(drawing.matches(colour).count(), 1, "{colour}");
        }
    }

    #[test]
    fn arrows_come_with_their_parts() {
        let svg = animation(&[OrderPicture { arrows: true, ..picture(&[0, 1, 2]) }], 8.0).unwrap();
        assert_eq!((svg.matches("<line").count(), svg.matches("<circle").count()), (2, 3));
        assert_eq!(svg.matches("class=\"part p0of3\"").count(), 2, "the first has no arrow");
        assert_eq!(svg.matches("class=\"part p1of3\"").count(), 3);
    }

    #[test]
    fn an_image_is_not_hidden_by_cells_to_come() {
        let image = Picture::new(1, 1, vec![1, 2, 3]).ok();
        let svg = animation(&[OrderPicture { image, ..picture(&[0, 1]) }, picture(&[0, 1])], 8.0).unwrap();
        assert_eq!((svg.matches("<image").count(), svg.matches(super::UNLIT).count()), (1, 2));
    }

    #[test]
    fn what_cannot_be_followed_is_refused() {
        for seconds in [0.0, -1.0, 601.0, f64::NAN, f64::INFINITY] {
            assert!(matches!(animation(&[picture(&[0])], seconds), Err(ReportError::Seconds { .. })), "{seconds}");
        }
        assert!(matches!(animation(&[], 8.0), Err(ReportError::NoPicture)));
        let short = OrderPicture { cols: 2, ..picture(&[0]) };
        assert!(matches!(animation(&[short], 8.0), Err(ReportError::Mask { rows: 1, cols: 2, .. })));
    }

    #[test]
    fn equal_pictures_give_equal_bytes() {
        let pictures = [picture(&[3, 1, 0, 2]), picture(&[0, 0, 1, 0])];
        assert_eq!(animation(&pictures, 8.0).unwrap(), animation(&pictures.clone(), 8.0).unwrap());
    }
}
