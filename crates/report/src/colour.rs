//! Colours that stand for numbers: a place in an order, a signed weight.

/// Red, green, blue.
pub(crate) type Rgb = [u8; 3];

/// From first to last: dark to bright, told apart in grey and by the colour-blind.
const ORDER: [[f64; 3]; 5] =
    [[68.0, 1.0, 84.0], [59.0, 82.0, 139.0], [33.0, 145.0, 140.0], [94.0, 201.0, 98.0], [253.0, 231.0, 37.0]];
/// From -1 to 1: blue, pale at zero, red; the colour-blind tell the ends apart.
const SIGNED: [[f64; 3]; 5] =
    [[33.0, 102.0, 172.0], [146.0, 197.0, 222.0], [238.0, 238.0, 238.0], [244.0, 165.0, 130.0], [178.0, 24.0, 43.0]];

/// The colour of `rank`, 0 to `last`.
pub(crate) fn of_rank(rank: u32, last: u32) -> Rgb {
    along(&ORDER, share(rank, last))
}

/// The colour of a number from -1 to 1; what lies outside has that of the nearer end.
pub(crate) fn of_sign(value: f64) -> Rgb {
    along(&SIGNED, (value + 1.0) / 2.0)
}

/// `rank` of 0 to `last`, as a share.
pub(crate) fn share(rank: u32, last: u32) -> f64 {
    f64::from(rank) / f64::from(last.max(1))
}

/// `#rrggbb`.
pub(crate) fn hex([r, g, b]: Rgb) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// Near-black or white, whichever is read more easily on `colour`.
pub(crate) fn ink_on(colour: Rgb) -> &'static str {
    let linear = |channel: u8| match f64::from(channel) / 255.0 {
        dark if dark <= 0.04045 => dark / 12.92,
        bright => ((bright + 0.055) / 1.055).powf(2.4),
    };
    let [r, g, b] = colour.map(linear);
    // Where both have the same contrast (WCAG).
    if 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.18 { "#14171b" } else { "#ffffff" }
}

fn along(stops: &[[f64; 3]; 5], share: f64) -> Rgb {
    let place = share.clamp(0.0, 1.0) * (stops.len() - 1) as f64;
    let below = (place as usize).min(stops.len() - 2);
    let part = place - below as f64;
    [0, 1, 2].map(|at| (stops[below][at] * (1.0 - part) + stops[below + 1][at] * part).round() as u8)
}

#[cfg(test)]
mod tests {
    use super::{hex, ink_on, of_rank, of_sign};

    #[test]
    fn ranks_go_from_dark_to_bright() {
        assert_eq!([0, 2, 4].map(|rank| hex(of_rank(rank, 4))), ["#440154", "#21918c", "#fde725"]);
        assert_eq!(of_rank(0, 0), of_rank(0, 7), "one part is the first");
        assert_eq!(of_rank(u32::MAX, u32::MAX), of_rank(4, 4));
    }

    #[test]
    fn zero_is_neutral_and_signs_differ() {
        assert_eq!(of_sign(0.0), [238; 3]);
        let ([blue, .., strong], [red, .., weak]) = (of_sign(-1.0), of_sign(1.0));
        assert!(strong > blue && red > weak);
        assert_eq!((of_sign(-9.0), of_sign(f64::INFINITY)), (of_sign(-1.0), of_sign(1.0)));
        assert_eq!(of_sign(f64::NAN), [0; 3], "no number, no panic");
    }

    #[test]
    fn ink_stands_out() {
        assert_eq!([of_sign(0.0), of_sign(1.0), of_sign(-1.0)].map(ink_on), ["#14171b", "#ffffff", "#ffffff"]);
    }
}
