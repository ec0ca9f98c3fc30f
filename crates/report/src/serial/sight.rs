//! Tables of which token sees which.

use super::{SIDE, side_by_side, square};
use crate::colour::{hex, of_rank};
use crate::{ReportError, Result};

/// Which token sees which.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SightPicture {
    /// What is written under it.
    pub title: String,
    /// Rank of each token: rows are those that look, columns those that are looked at.
    pub ranks: Vec<u32>,
    /// `ranks.len()` squared, row by row.
    pub seen: Vec<bool>,
}

/// One SVG of all tables, side by side: a dark square where the row's token sees the column's.
///
/// # Errors
/// No table, or one that is not square.
pub fn sights(pictures: &[SightPicture]) -> Result<String> {
    side_by_side(pictures.len(), "", |at, svg| {
        let SightPicture { title, ranks, seen } = &pictures[at];
        let count = ranks.len();
        if count == 0 || Some(seen.len()) != count.checked_mul(count) {
            let message = format!("{} flags", seen.len());
            return Err(ReportError::Mask { rows: count, cols: count, message });
        }
        // A strip of ranks above and to the left.
        let (cell, last) = (SIDE / (count + 1) as f64, ranks.iter().max().copied().unwrap_or_default());
        for (at, rank) in ranks.iter().enumerate() {
            let colour = hex(of_rank(*rank, last));
            square(svg, (at + 1, 0), cell, &colour);
            square(svg, (0, at + 1), cell, &colour);
        }
        for (index, seen) in seen.iter().enumerate() {
            square(svg, (index % count + 1, index / count + 1), cell, if *seen { "#30363d" } else { "#eef0f2" });
        }
        Ok(title.clone())
    })
}

#[cfg(test)]
mod tests {
    use super::{SightPicture, sights};
    use crate::ReportError;

    #[test]
    fn a_table_shows_who_sees_whom() {
        let table = SightPicture { title: "t".into(), ranks: vec![0, 1], seen: vec![true, false, true, true] };
        let svg = sights(std::slice::from_ref(&table)).unwrap();
        assert_eq!((svg.matches("#30363d").count(), svg.matches("#eef0f2").count()), (3, 1));
        assert!(sights(&[SightPicture { seen: vec![true], ..table }]).is_err());
        assert!(matches!(sights(&[]), Err(ReportError::NoPicture)));
    }
}
