//! Every reader on small files written here, and every refusal.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at a surprise")]

mod common;

use common::{class_names, config, gzip, names_below, open_whole, png, refusal, source, tar, write};
use occlude_data::{Dataset, Error, SourceConfig, Split, open, open_both};
use std::fs;
use std::path::Path;
use tempfile::tempdir;

fn classes_folder(root: &Path) {
    write(root, "cat/b.PNG", &png(3, 2, [1, 2, 3]));
    write(root, "cat/deep/down/a.png", &png(4, 4, [4, 5, 6]));
    write(root, "ant/z.png", &png(2, 2, [7, 8, 9]));
    write(root, "ant/notes.txt", b"no image");
    write(root, ".hidden/x.png", b"no image either");
    write(root, "ant/._z.png", b"a resource fork");
}

#[test]
fn a_folder_is_read_in_sorted_order_with_classes() {
    let root = tempdir().unwrap();
    classes_folder(root.path());
    let set = open_whole(root.path()).unwrap();
    assert_eq!(names_below(&*set, root.path()), ["ant/z.png", "cat/b.PNG", "cat/deep/down/a.png"]);
    assert_eq!((set.classes().len(), class_names(&*set)), (2, vec!["ant", "cat", "cat"]));
    let image = set.read(1).unwrap();
    assert_eq!((image.width, image.height, &image.pixels[..3]), (3, 2, &[1, 2, 3][..]));
}

#[test]
fn a_flat_folder_has_no_classes() {
    let root = tempdir().unwrap();
    write(root.path(), "b.png", &png(2, 2, [0; 3]));
    write(root.path(), "a.png", &png(2, 2, [0; 3]));
    let set = open_whole(root.path()).unwrap();
    assert_eq!((set.len(), set.classes().len(), set.label(0)), (2, 0, None));
}

#[test]
fn a_single_folder_is_no_class() {
    let root = tempdir().unwrap();
    write(root.path(), "holiday/b.png", &png(2, 2, [0; 3]));
    write(root.path(), "holiday/a.png", &png(2, 2, [0; 3]));
    let set = open_whole(root.path()).unwrap();
    assert_eq!((set.classes().len(), class_names(&*set)), (0, vec!["-", "-"]));
}

#[cfg(unix)]
#[test]
fn links_are_followed_and_circles_left_out() {
    use std::os::unix::fs::symlink;
    let root = tempdir().unwrap();
    let elsewhere = tempdir().unwrap();
    write(elsewhere.path(), "x.png", &png(2, 2, [0; 3]));
    write(root.path(), "a/1.png", &png(2, 2, [0; 3]));
    symlink(elsewhere.path(), root.path().join("b")).unwrap();
    symlink(root.path(), root.path().join("a/circle")).unwrap();
    symlink(root.path().join("nowhere.png"), root.path().join("a/broken.png")).unwrap();
    let set = open_whole(root.path()).unwrap();
    assert_eq!(names_below(&*set, root.path()), ["a/1.png", "b/x.png"]);
}

#[test]
fn a_folder_with_both_splits_gives_both_under_one_class_list() {
    let root = tempdir().unwrap();
    for name in ["train/ant/1.png", "train/bee/1.png", "val/bee/1.png", "val/cat/1.png"] {
        write(root.path(), name, &png(2, 2, [0; 3]));
    }
    let source = source(root.path());
    let (train, test) = (open(&source, Split::Train).unwrap(), open(&source, Split::Test).unwrap());
    assert_eq!(class_names(&*train), ["ant", "bee"]);
    // A class that only one split has does not shift the labels of the other.
    assert_eq!(class_names(&*test), ["bee", "cat"]);
    assert_eq!(train.classes(), test.classes());
}

#[test]
fn a_share_is_held_out_where_there_is_no_test_split() {
    let root = tempdir().unwrap();
    for index in 0..20 {
        write(root.path(), &format!("{index:02}.png"), &png(2, 2, [0; 3]));
    }
    let names = |seed, split| {
        let config = SourceConfig { holdout: 0.25, seed, ..config(root.path()) };
        names_below(&*open(&config.check().unwrap(), split).unwrap(), root.path())
    };
    let (train, test) = (names(0, Split::Train), names(0, Split::Test));
    assert_eq!((train.len(), test.len()), (15, 5));
    let mut all = [train, test.clone()].concat();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 20);
    assert_eq!(test, names(0, Split::Test));
    assert_ne!(test, names(1, Split::Test));
    let none = SourceConfig { holdout: 0.0, ..config(root.path()) }.check().unwrap();
    let refused = open(&none, Split::Test).err().unwrap();
    assert!(matches!(refused, Error::NoTestSplit { .. }), "{refused}");
}

#[test]
fn limits_take_a_drawn_part() {
    let root = tempdir().unwrap();
    for index in 0..20 {
        write(root.path(), &format!("{index:02}.png"), &png(2, 2, [0; 3]));
    }
    let part = |seed| {
        let limited = SourceConfig { train_limit: Some(8), holdout: 0.0, seed, ..config(root.path()) };
        names_below(&*open(&limited.check().unwrap(), Split::Train).unwrap(), root.path())
    };
    assert_eq!((part(0).len(), part(0)), (8, part(0)));
    assert_ne!(part(0), part(1));
}

#[test]
fn the_first_images_of_each_class_are_the_training_set() {
    let root = tempdir().unwrap();
    for name in ["train/ant/3.png", "train/ant/1.png", "train/ant/2.png", "train/bee/1.png", "val/bee/1.png"] {
        write(root.path(), name, &png(2, 2, [0; 3]));
    }
    let opened = |each, limit, split| {
        let config = SourceConfig { train_per_class: Some(each), train_limit: limit, ..config(root.path()) };
        open(&config.check().unwrap(), split).unwrap()
    };
    let names = |each, limit, split| names_below(&*opened(each, limit, split), root.path());
    assert_eq!(names(2, None, Split::Train), ["train/ant/1.png", "train/ant/2.png", "train/bee/1.png"]);
    assert_eq!(names(1, None, Split::Train), ["train/ant/1.png", "train/bee/1.png"]);
    assert_eq!(class_names(&*opened(1, None, Split::Train)), ["ant", "bee"]);
    assert_eq!((names(9, None, Split::Train).len(), names(2, Some(1), Split::Train).len()), (4, 1));
    assert_eq!(names(1, None, Split::Test).len(), 1);
    let plain = tempdir().unwrap();
    (0..4).for_each(|index| write(plain.path(), &format!("{index}.png"), &png(2, 2, [0; 3])));
    let config = SourceConfig { train_per_class: Some(1), ..config(plain.path()) };
    let refused = open(&config.check().unwrap(), Split::Train).err().unwrap().to_string();
    assert!(refused.contains("train_per_class"), "{refused}");
}

#[test]
fn both_splits_are_the_ones_that_are_opened_alone() {
    let root = tempdir().unwrap();
    classes_folder(root.path());
    let source = SourceConfig { holdout: 0.3, ..config(root.path()) }.check().unwrap();
    let (train, test) = open_both(&source).unwrap();
    assert_eq!(train.fingerprint(), open(&source, Split::Train).unwrap().fingerprint());
    assert_eq!(test.unwrap().fingerprint(), open(&source, Split::Test).unwrap().fingerprint());
    let whole = SourceConfig { holdout: 0.0, ..config(root.path()) }.check().unwrap();
    let (train, test) = open_both(&whole).unwrap();
    assert_eq!((train.len(), test.is_none()), (3, true));
}

#[test]
fn a_fingerprint_tells_which_images_and_not_where_they_lie() {
    let (here, there) = (tempdir().unwrap(), tempdir().unwrap());
    for root in [here.path(), there.path()] {
        classes_folder(root);
        write(root, "packed/a.tar", &tar(&[("cat/1.png", &[0; 90])]));
        write(root, "cifar/data_batch_1.bin", &cifar(&[&[3], &[9]]));
        write(root, "idx/x-images-idx3-ubyte", &idx(&[1, 2, 3], &[0; 6]));
    }
    fs::remove_file(there.path().join("packed/a.tar")).unwrap();
    write(there.path(), "packed/b.tar", &tar(&[("cat/1.png", &[0; 90])]));
    let marks =
        |root: &Path| ["cat", "packed", "cifar", "idx"].map(|name| open_whole(&root.join(name)).unwrap().fingerprint());
    assert_eq!(marks(here.path()), marks(there.path()));
    // Stored runs refuse to go on if these change.
    let synthetic = open(&SourceConfig::default().check().unwrap(), Split::Train).unwrap();
    let counting = common::Counting::new(3);
    let mut frozen = marks(here.path()).to_vec();
    frozen.extend([synthetic.fingerprint(), counting.fingerprint()]);
    assert_eq!(frozen, FROZEN);
    // Another image, another mark.
    write(there.path(), "cat/c.png", &png(2, 2, [0; 3]));
    assert_ne!(marks(here.path())[0], marks(there.path())[0]);
}

const FROZEN: [u64; 6] = [
    18_129_210_988_568_420_904,
    4_230_765_758_377_141_378,
    11_851_875_070_500_005_191,
    12_510_886_546_449_961_134,
    4_403_074_098_619_823_288,
    2_922_663_919_000_731_306,
];

#[test]
fn archives_of_folders_are_read_in_place() {
    let root = tempdir().unwrap();
    let (red, green, blue) = (png(2, 2, [200, 0, 0]), png(3, 3, [0, 200, 0]), png(4, 4, [0, 0, 200]));
    let long = format!("cat/{}/deep.png", "n".repeat(150));
    write(root.path(), "train-000.tar", &tar(&[("cat/1.png", &red), ("./ant/2.png", &green), ("cat/notes.txt", b"x")]));
    write(root.path(), "train-001.tar", &tar(&[(&long, &blue)]));
    write(root.path(), "test.tar", &tar(&[("cat/9.png", &blue)]));
    let source = source(root.path());
    let train = open(&source, Split::Train).unwrap();
    assert_eq!(class_names(&*train), ["cat", "ant", "cat"]);
    assert!(train.name(2).ends_with(&format!("train-001.tar: {long}")), "{}", train.name(2));
    let sides: Vec<usize> = (0..3).map(|index| train.read(index).unwrap().width).collect();
    assert_eq!(sides, [2, 3, 4]);
    assert_eq!(train.read(1).unwrap().pixels[..3], [0, 200, 0]);
    let test = open(&source, Split::Test).unwrap();
    assert_eq!(class_names(&*test), ["cat"]);
    // By glob, and one archive by name.
    assert_eq!(open_whole(&root.path().join("train-*.tar")).unwrap().len(), 3);
    assert_eq!(open_whole(&root.path().join("train-001.tar")).unwrap().len(), 1);
    // With the test split given apart.
    let apart = SourceConfig {
        test: Some(root.path().to_str().unwrap().to_owned()),
        ..config(&root.path().join("train-*.tar"))
    };
    assert_eq!(open(&apart.check().unwrap(), Split::Test).unwrap().len(), 1);
}

#[test]
fn webdataset_pairs_take_their_class_from_the_pair() {
    let root = tempdir().unwrap();
    let red = png(2, 2, [200, 0, 0]);
    let files: [(&str, &[u8]); 7] = [
        ("000.png", &red),
        ("000.cls", b"10\n"),
        ("000.json", b"{}"),
        ("a/001.cls", b"9"),
        ("a/001.png", &red),
        ("a/001.mask.png", &red),
        ("002.png", &red),
    ];
    write(root.path(), "shard.tar", &tar(&files));
    let set = open_whole(&root.path().join("shard.tar")).unwrap();
    assert_eq!(set.classes(), ["9", "10"]);
    assert_eq!(class_names(&*set), ["10", "9", "-"]);
}

#[test]
fn a_stray_class_entry_does_not_take_the_folders_for_pairs() {
    let root = tempdir().unwrap();
    let red = png(2, 2, [200, 0, 0]);
    let files: [(&str, &[u8]); 4] =
        [("cat/1.png", &red), ("cat/1.cls", b"7"), ("dog/2.png", &red), ("dog/3.b.png", &red)];
    write(root.path(), "shard.tar", &tar(&files));
    assert_eq!(class_names(&*open_whole(&root.path().join("shard.tar")).unwrap()), ["cat", "dog", "dog"]);
}

#[test]
fn pictures_of_labels_are_not_training_images() {
    let root = tempdir().unwrap();
    let red = png(2, 2, [200, 0, 0]);
    write(root.path(), "pairs.tar", &tar(&[("images/1.png", &red), ("labels/1.png", &red)]));
    let set = open_whole(&root.path().join("pairs.tar")).unwrap();
    assert_eq!((set.len(), set.classes().len()), (1, 0));
}

#[test]
fn a_truncated_archive_is_refused_by_name() {
    let root = tempdir().unwrap();
    let red = png(40, 40, [200, 0, 0]);
    let whole = tar(&[("cat/1.png", &red), ("cat/2.png", &red)]);
    let second_entry = 512 + red.len().next_multiple_of(512) + 512;
    // Inside the second image, inside its header, before its header, and after it without the end mark.
    let cuts = [
        (second_entry + 20, "entry cat/2.png"),
        (second_entry - 100, "the last header"),
        (second_entry - 512, "the end mark"),
        (second_entry + red.len(), "the end mark"),
        (second_entry + red.len().next_multiple_of(512), "the end mark"),
    ];
    for (length, part) in cuts {
        write(root.path(), "cut.tar", &whole[..length]);
        let refused = refusal(&root.path().join("cut.tar"));
        assert!(refused.contains("cut.tar: cut short") && refused.contains(part), "{refused}");
    }
    write(root.path(), "cut.tar", b"this is no archive, whatever its name says".repeat(30).as_slice());
    assert!(refusal(&root.path().join("cut.tar")).contains("not a readable tar archive"));
}

#[test]
fn an_entry_beyond_the_limit_is_refused_before_memory_is_taken() {
    let root = tempdir().unwrap();
    let path = root.path().join("huge.tar");
    let mut header = tar::Header::new_gnu();
    header.set_path("cat/huge.png").unwrap();
    header.set_size(300 << 20);
    header.set_cksum();
    fs::write(&path, header.as_bytes()).unwrap();
    // A sparse file: as long as its header says, without a byte on disk.
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(2048 + (300 << 20)).unwrap();
    let set = open_whole(&path).unwrap();
    let refused = set.read(0).unwrap_err();
    assert!(matches!(refused, Error::TooLarge { found, .. } if found == 300 << 20), "{refused}");
}

/// Records in the published layout: label bytes, then the red, green and blue planes.
fn cifar(labels: &[&[u8]]) -> Vec<u8> {
    let record = |(number, label): (usize, &&[u8])| {
        let planes = (0..3072).map(move |place| (place / 1024 * 80 + place % 1024 % 50 + number) as u8);
        label.iter().copied().chain(planes).collect::<Vec<u8>>()
    };
    labels.iter().enumerate().flat_map(record).collect()
}

#[test]
fn cifar_10_is_read_from_its_records() {
    let root = tempdir().unwrap();
    let folder = root.path().join("cifar-10-batches-bin");
    write(&folder, "data_batch_1.bin", &cifar(&[&[3], &[9]]));
    write(&folder, "data_batch_2.bin", &cifar(&[&[0]]));
    write(&folder, "test_batch.bin", &cifar(&[&[5]]));
    let names: Vec<String> = (0..10).map(|class| format!("class-{class}")).collect();
    write(&folder, "batches.meta.txt", format!("{}\n\n", names.join("\n")).as_bytes());
    let source = source(root.path());
    let train = open(&source, Split::Train).unwrap();
    assert_eq!(class_names(&*train), ["class-3", "class-9", "class-0"]);
    assert_eq!(train.classes().len(), 10);
    let image = train.read(1).unwrap();
    assert_eq!((image.width, image.height), (32, 32));
    assert_eq!(image.pixels[..6], [1, 81, 161, 2, 82, 162]);
    assert!(train.name(2).ends_with("data_batch_2.bin: record 0"));
    assert_eq!(class_names(&*open(&source, Split::Test).unwrap()), ["class-5"]);
}

#[test]
fn cifar_100_uses_the_fine_label() {
    let root = tempdir().unwrap();
    write(root.path(), "train.bin", &cifar(&[&[1, 99], &[2, 7]]));
    write(root.path(), "test.bin", &cifar(&[&[19, 0]]));
    let train = open(&source(root.path()), Split::Train).unwrap();
    assert_eq!((class_names(&*train), train.classes().len()), (vec!["99", "7"], 100));
    assert_eq!(train.read(0).unwrap().pixels[..3], [0, 80, 160]);
    assert_eq!(open_whole(&root.path().join("test.bin")).unwrap().len(), 1);
}

#[test]
fn a_cifar_file_of_the_wrong_length_is_named_with_its_length() {
    let root = tempdir().unwrap();
    let whole = cifar(&[&[3], &[9]]);
    write(root.path(), "data_batch_1.bin", &whole[..whole.len() - 1]);
    let refused = refusal(root.path());
    assert!(refused.contains("data_batch_1.bin: 6145 bytes") && refused.contains("3073-byte records"), "{refused}");
    write(root.path(), "data_batch_1.bin", &cifar(&[&[3], &[10]]));
    assert!(refusal(root.path()).contains("record 1 has label 10, but there are 10 classes"));
    write(root.path(), "data_batch_1.bin", b"");
    assert!(refusal(root.path()).contains("0 bytes"));
    write(root.path(), "data_batch_1.bin", &whole);
    write(root.path(), "batches.meta.txt", b"cat\ndog\n");
    assert!(refusal(root.path()).contains("batches.meta.txt: 2 class names, 10 expected"));
}

fn idx(dims: &[u32], data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, dims.len() as u8];
    bytes.extend(dims.iter().flat_map(|dim| dim.to_be_bytes()));
    bytes.extend_from_slice(data);
    bytes
}

#[test]
fn idx_files_are_read_packed_or_not() {
    let root = tempdir().unwrap();
    let pixels: Vec<u8> = (0..18).collect();
    write(root.path(), "train-images-idx3-ubyte", &idx(&[3, 2, 3], &pixels));
    write(root.path(), "train-labels-idx1-ubyte.gz", &gzip(&idx(&[3], &[2, 0, 1])));
    write(root.path(), "t10k-images-idx3-ubyte.gz", &gzip(&idx(&[2, 2, 3], &pixels[..12])));
    write(root.path(), "t10k-labels-idx1-ubyte", &idx(&[2], &[1, 1]));
    let source = source(root.path());
    let (train, test) = (open(&source, Split::Train).unwrap(), open(&source, Split::Test).unwrap());
    assert_eq!((class_names(&*train), class_names(&*test)), (vec!["2", "0", "1"], vec!["1", "1"]));
    for set in [&train, &test] {
        let image = set.read(1).unwrap();
        assert_eq!((image.width, image.height, &image.pixels[..6]), (3, 2, &[6, 6, 6, 7, 7, 7][..]));
    }
    // An image file alone has no labels to go with it.
    write(root.path(), "alone/x-images-idx3-ubyte", &idx(&[1, 2, 3], &pixels[..6]));
    let alone = open_whole(&root.path().join("alone/x-images-idx3-ubyte")).unwrap();
    assert_eq!((alone.len(), alone.label(0)), (1, None));
}

#[test]
fn idx_headers_are_compared_with_the_file_before_memory_is_taken() {
    let root = tempdir().unwrap();
    let name = "train-images-idx3-ubyte";
    let refused = |bytes: &[u8]| {
        write(root.path(), name, bytes);
        refusal(root.path())
    };
    let cut = refused(&idx(&[3, 2, 3], &[0; 17]));
    assert!(cut.contains("cut short: an array of [3, 2, 3] needs 34 bytes, 33 are there"), "{cut}");
    assert!(refused(&idx(&[3, 2, 3], &[0; 19])).contains("goes on after the 34 bytes"));
    assert!(refused(&idx(&[u32::MAX, u32::MAX, u32::MAX], &[])).contains("exceeds the limit"));
    assert!(refused(&idx(&[1, 1], &[0; 9])).contains("starts with [00, 00, 08, 02]"));
    assert!(refused(&[0, 0, 8]).contains("the header needs 16 bytes, 3 are there"));
    assert!(refused(&idx(&[0, 2, 3], &[])).contains("no images inside"));
    // The same through gzip: a packed file that announces gigabytes holds only what arrives.
    assert!(refused(&gzip(&idx(&[60_000, 2, 3], &[0; 17]))).contains("needs 360016 bytes, 33 are there"));
    assert!(refused(&gzip(&idx(&[3, 2, 3], &[0; 40]))).contains("goes on after"));
    write(root.path(), "train-labels-idx1-ubyte", &idx(&[2], &[0, 1]));
    assert!(refused(&idx(&[3, 2, 3], &[0; 18])).contains("2 labels for 3 images"));
}

#[test]
fn what_is_not_there_is_said_with_the_remedy() {
    let root = tempdir().unwrap();
    assert!(refusal(&root.path().join("nowhere")).contains("nowhere: no such file or folder; give a folder of images"));
    assert!(refusal(&root.path().join("train-*.tar")).contains("no such file or folder"));
    assert!(refusal(root.path()).contains("no images inside; PNG, JPEG, WebP and TIFF files are looked for"));
    write(root.path(), "set.tar.gz", b"x");
    assert!(refusal(&root.path().join("set.tar.gz")).contains("unpack it to a folder or to a plain .tar"));
    write(root.path(), "readme.md", b"x");
    assert!(refusal(&root.path().join("readme.md")).contains("not a data set"));
    write(root.path(), "empty.tar", &tar(&[("a/readme.md", b"x")]));
    assert!(refusal(&root.path().join("empty.tar")).contains("empty.tar: no images inside"));
}

#[test]
fn settings_out_of_range_are_named() {
    let refused = |config: SourceConfig| config.check().unwrap_err().field;
    let plain = SourceConfig::default;
    assert_eq!(refused(SourceConfig { path: " ".into(), ..plain() }), "path");
    assert_eq!(refused(SourceConfig { holdout: 1.0, ..plain() }), "holdout");
    assert_eq!(refused(SourceConfig { holdout: f64::NAN, ..plain() }), "holdout");
    assert_eq!(refused(SourceConfig { train_limit: Some(0), ..plain() }), "train_limit");
    assert_eq!(refused(SourceConfig { train_per_class: Some(0), path: "x".into(), ..plain() }), "train_per_class");
    assert_eq!(refused(SourceConfig { train_per_class: Some(5), ..plain() }), "train_per_class");
    assert_eq!(refused(SourceConfig { test_limit: Some(usize::MAX), ..plain() }), "test_limit");
    assert_eq!(refused(SourceConfig { test: Some("photos".into()), ..plain() }), "test");
    assert_eq!(refused(SourceConfig { synthetic_side: 33, ..plain() }), "synthetic_side");
}

#[test]
fn the_synthetic_set_opens_like_any_other() {
    let config = SourceConfig { train_limit: Some(30), test_limit: Some(10), ..Default::default() };
    let source = config.check().unwrap();
    assert!(source.is_synthetic());
    let (train, test) = (open(&source, Split::Train).unwrap(), open(&source, Split::Test).unwrap());
    assert_eq!((train.len(), test.len()), (30, 10));
    assert_eq!(train.classes(), test.classes());
    assert_ne!(train.read(0).unwrap(), test.read(0).unwrap());
}
