//! Views: their order, their draws, what is refused.

use super::{BlurConfig, JitterConfig, NamedViews, SolariseConfig, ViewConfig, Views, ViewsConfig};
use crate::augment::{Augment, Draws};
use crate::draw::{between, unit};
use crate::{CropConfig, Image, RandomCrop, ops};
use occlude_random::{Streams, choose};
use std::collections::HashSet;
use std::sync::Arc;

const SIDE: usize = 8;

fn crop() -> Arc<RandomCrop> {
    Arc::new(CropConfig { size: SIDE, ..CropConfig::default() }.check().unwrap())
}

fn picture() -> Image {
    let pixels = (0..3 * 31 * 23).map(|i| ((i * 7919 + i / 13 * 104_729) % 251) as u8).collect();
    Image { width: 31, height: 23, pixels }
}

fn views(of: &dyn Augment, sample: u64) -> Vec<Vec<f32>> {
    let mut out = vec![vec![0.0; 3 * SIDE * SIDE]; of.count()];
    let mut slices: Vec<&mut [f32]> = out.iter_mut().map(Vec::as_mut_slice).collect();
    of.views(&picture(), &Draws::new(Streams::new(3), 1, sample), &mut slices);
    out
}

fn checked(config: &ViewsConfig) -> Views {
    config.check(crop()).unwrap()
}

fn moca() -> Views {
    checked(&ViewsConfig::Named(NamedViews::Moca))
}

#[test]
fn a_view_without_a_recipe_is_the_crop_alone() {
    for sample in 0..20 {
        let alone = views(&*crop(), sample);
        assert_eq!(views(&Views::plain(crop()), sample), alone);
        assert_eq!(views(&checked(&ViewsConfig::Each(vec![ViewConfig::default()])), sample), alone);
    }
}

#[test]
fn two_views_differ_and_depend_on_their_number_and_sample_alone() {
    for sample in 0..20 {
        let [first, second] = views(&moca(), sample).try_into().unwrap();
        assert_ne!(first, second);
        assert_eq!(views(&moca(), sample), [first, second]);
    }
    // The second view is the same whatever comes first.
    let mut each = NamedViews::Moca.written_out();
    each[0] = ViewConfig::default();
    assert_eq!(views(&checked(&ViewsConfig::Each(each)), 5)[1], views(&moca(), 5)[1]);
}

#[test]
fn draws_are_frozen() {
    // Stored runs resume on these; a change here breaks every one of them.
    let jitter = JitterConfig { probability: 1.0, ..JitterConfig::default() };
    let some = JitterConfig { contrast: 0.0, hue: 0.0, ..jitter.clone() };
    let blur = BlurConfig { probability: 1.0, ..BlurConfig::default() };
    let solarise = SolariseConfig { probability: 0.5, ..SolariseConfig::default() };
    let none = ViewConfig::default();
    let each = vec![
        ViewConfig { jitter, ..none.clone() },
        ViewConfig { jitter: some, ..none.clone() },
        ViewConfig { grey: 0.5, ..none.clone() },
        ViewConfig { blur, ..none.clone() },
        ViewConfig { solarise, ..none.clone() },
        none,
    ];
    let mark = |view: &Vec<f32>| view.iter().fold(0_u32, |mark, value| mark.rotate_left(5) ^ value.to_bits());
    let frozen = |config: &ViewsConfig| views(&checked(config), 7).iter().map(mark).collect::<Vec<_>>();
    assert_eq!(frozen(&ViewsConfig::Each(each)), EACH);
    assert_eq!(frozen(&ViewsConfig::Named(NamedViews::Moca)), MOCA);
}

const EACH: [u32; 6] = [399_179_834, 2_687_367_174, 498_085_450, 1_903_955_330, 1_046_140_117, 734_323_551];
const MOCA: [u32; 2] = [1_390_988_609, 2_250_495_363];

#[test]
fn the_pair_of_moca_is_what_its_table_says() {
    let (mut orders, crop) = (HashSet::new(), crop());
    let mut by_the_table = |view: usize, sample| {
        let mut stream = Draws::new(Streams::new(3), 1, sample).view(view);
        let stream = &mut stream;
        let from = crop.draw_box(31, 23, stream);
        let mut picture = crop.cut(&picture(), from);
        if unit(stream) < 0.8 {
            let mut order = [0, 1, 2, 3];
            choose(stream, &mut order, 4);
            let brightness = between(stream, 1.0 - 0.4, 1.0 + 0.4) as f32;
            let contrast = between(stream, 1.0 - 0.4, 1.0 + 0.4) as f32;
            let saturation = between(stream, 1.0 - 0.2, 1.0 + 0.2) as f32;
            let hue = between(stream, -0.1, 0.1);
            for change in order {
                match change {
                    0 => ops::brightness(&mut picture, brightness),
                    1 => ops::contrast(&mut picture, contrast),
                    2 => ops::saturation(&mut picture, saturation),
                    _ => ops::hue(&mut picture, hue),
                }
            }
            orders.insert(order);
        }
        if unit(stream) < 0.2 {
            ops::grey(&mut picture);
        }
        if unit(stream) < [1.0, 0.1][view] {
            ops::blur(&mut picture, between(stream, 0.1, 2.0) as f32);
        }
        if view == 1 && unit(stream) < 0.2 {
            ops::solarise(&mut picture, 128);
        }
        let mut out = vec![0.0; 3 * SIDE * SIDE];
        crop.normalize().write(&picture, unit(stream) < 0.5, &mut out);
        out
    };
    for sample in 0..200 {
        assert_eq!(views(&moca(), sample), [by_the_table(0, sample), by_the_table(1, sample)], "{sample}");
    }
    assert_eq!(orders.len(), 24, "all orders of the jitter");
}

#[test]
fn what_is_not_sure_happens_as_often_as_it_should() {
    let plain = CropConfig { size: SIDE, mean: [0.0; 3], std: [1.0; 3], ..CropConfig::default() };
    let config = ViewsConfig::Each(vec![ViewConfig { grey: 0.2, ..ViewConfig::default() }]);
    let of = config.check(Arc::new(plain.check().unwrap())).unwrap();
    let is_grey = |view: &[f32]| view.chunks_exact(SIDE * SIDE).all(|channel| channel == &view[..SIDE * SIDE]);
    let grey = (0..4000).filter(|&sample| is_grey(&views(&of, sample)[0])).count();
    // Five deviations: 5 * sqrt(4000 * 0.2 * 0.8) = 126.
    assert!(grey.abs_diff(800) < 126, "{grey}");
}

#[test]
fn settings_out_of_range_are_named() {
    let refused = |view: ViewConfig| {
        let config = ViewsConfig::Each(vec![ViewConfig::default(), view]);
        config.check(crop()).unwrap_err().to_string()
    };
    let jitter = |jitter| refused(ViewConfig { jitter, ..ViewConfig::default() });
    let blur = |blur| refused(ViewConfig { blur, ..ViewConfig::default() });
    let (jitters, blurs) = (JitterConfig::default(), BlurConfig::default());
    for (message, start) in [
        (refused(ViewConfig { grey: -0.1, ..ViewConfig::default() }), "views.1.grey = -0.1: must be a probability"),
        (jitter(JitterConfig { probability: f64::NAN, ..jitters.clone() }), "views.1.jitter.probability = NaN"),
        (
            jitter(JitterConfig { contrast: 1.5, ..jitters.clone() }),
            "views.1.jitter.contrast = 1.5: must be between 0 and 1",
        ),
        (jitter(JitterConfig { hue: 0.6, ..jitters }), "views.1.jitter.hue = 0.6: must be between 0 and 0.5"),
        (
            blur(BlurConfig { sigma: [2.0, 1.0], ..blurs.clone() }),
            "views.1.blur.sigma = 2: must be at least 0 and not above",
        ),
        (blur(BlurConfig { sigma: [0.0, 33.0], ..blurs.clone() }), "views.1.blur.sigma = 33: must be at most 32"),
        (blur(BlurConfig { probability: 2.0, ..blurs }), "views.1.blur.probability = 2: must be a probability"),
        (
            refused(ViewConfig {
                solarise: SolariseConfig { probability: -1.0, threshold: 3 },
                ..ViewConfig::default()
            }),
            "views.1.solarise.probability = -1: must be a probability",
        ),
        (
            ViewsConfig::Each(vec![]).check(crop()).unwrap_err().to_string(),
            "views = 0: must list between 1 and 16 views",
        ),
    ] {
        assert!(message.starts_with(start), "{message}");
    }
}
