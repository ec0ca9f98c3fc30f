//! Which tokens become words: the draws, apart from what is done with them.

use super::config::{CodebookSettings, CodebookUpdate};
use occlude_random::{RngCore, below, choose, unit};

/// One patch of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Image of the batch.
    pub image: u32,
    /// Patch of the grid, row-major.
    pub patch: u32,
}

/// Everything that is random about an update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The view that all new words come from: 0 or 1.
    pub view: usize,
    /// What becomes a word.
    pub words: Chosen,
}

/// What becomes a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chosen {
    /// These patches.
    Tokens(Vec<Place>),
    /// The mean inside the border of each of these images.
    Means(Vec<u32>),
    /// This patch, and those that farthest point sampling finds from there.
    Farthest(Place),
}

impl CodebookSettings {
    /// Draws an update of a batch of `batch` images: view, images, then patches.
    pub fn draw<R: RngCore + ?Sized>(&self, batch: usize, rng: &mut R) -> Choice {
        let view = usize::from(unit(rng) >= 0.5);
        let mut images: Vec<u32> = (0..batch as u32).collect();
        let inside = |rng: &mut R| self.interior[below(rng, self.interior.len())];
        let words = match self.update {
            CodebookUpdate::RandomToken => {
                let images = choose(rng, &mut images, self.new_words).to_vec();
                Chosen::Tokens(images.into_iter().map(|image| Place { image, patch: inside(rng) }).collect())
            }
            CodebookUpdate::AvgToken => Chosen::Means(choose(rng, &mut images, self.new_words).to_vec()),
            CodebookUpdate::Fps => Chosen::Farthest(Place { image: below(rng, batch) as u32, patch: inside(rng) }),
        };
        Choice { view, words }
    }
}

#[cfg(test)]
mod tests {
    use super::{Choice, Chosen, Place};
    use crate::{CodebookConfig, CodebookSettings, CodebookUpdate};
    use occlude_masking::Grid;
    use occlude_random::Streams;

    fn settings(update: CodebookUpdate) -> CodebookSettings {
        let config = CodebookConfig { words: 8, new_words_per_step: 2, border: 1, update, ..CodebookConfig::default() };
        config.check(Grid::new(4, 4), 3).unwrap()
    }

    fn draws(update: CodebookUpdate, count: u64) -> Vec<Choice> {
        let settings = settings(update);
        (0..count).map(|step| settings.draw(3, &mut Streams::new(1).stream("words", 0, step))).collect()
    }

    #[test]
    fn images_are_distinct_and_patches_lie_inside_the_border() {
        let (mut views, mut images, mut patches) = ([0_usize; 2], [0_usize; 3], [0_usize; 16]);
        for choice in draws(CodebookUpdate::RandomToken, 2000) {
            let Chosen::Tokens(places) = choice.words else { panic!("tokens") };
            assert!(places.len() == 2 && places[0].image != places[1].image);
            views[choice.view] += 1;
            for Place { image, patch } in places {
                images[image as usize] += 1;
                patches[patch as usize] += 1;
            }
        }
        // Five standard deviations: 5 * sqrt(2000 / 4) = 112; 5 * sqrt(4000 * 2/9) = 150; 5 * sqrt(4000 * 3/16) = 137.
        assert!(views.iter().all(|count| count.abs_diff(1000) < 112), "{views:?}");
        assert!(images.iter().all(|count| count.abs_diff(1333) < 150), "{images:?}");
        for (patch, count) in patches.into_iter().enumerate() {
            let inside = [5, 6, 9, 10].contains(&patch);
            assert!(if inside { count.abs_diff(1000) < 137 } else { count == 0 }, "{patch}: {count}");
        }
    }

    #[test]
    fn other_updates_draw_what_they_need() {
        for choice in draws(CodebookUpdate::AvgToken, 20) {
            assert!(matches!(choice.words, Chosen::Means(images) if images.len() == 2 && images[0] != images[1]));
        }
        for choice in draws(CodebookUpdate::Fps, 20) {
            assert!(matches!(choice.words, Chosen::Farthest(at) if at.image < 3 && [5, 6, 9, 10].contains(&at.patch)));
        }
    }

    #[test]
    fn draws_are_frozen() {
        // A resumed run must draw the same numbers.
        let choice = draws(CodebookUpdate::RandomToken, 1).remove(0);
        let place = |image, patch| Place { image, patch };
        assert_eq!(choice, Choice { view: 0, words: Chosen::Tokens(vec![place(0, 6), place(2, 6)]) });
    }
}
