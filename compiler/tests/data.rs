//! Data files: what is read, what is refused, and that nothing else happens.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like tests")]

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use flate2::{Compression, Crc, write::DeflateEncoder};
use qail_fixtures::Policy;
use qailc::data::{DataError, DemoMap, Demos, Npz, NpzWriter, NumberType, write_npz};
use tempfile::TempDir;

fn plain() -> PathBuf {
    qail_fixtures::root().join("demos/plain.npz")
}

fn demos_of(policy: &str) -> PathBuf {
    Policy::named(policy).unwrap().demos_path().unwrap()
}

/// An npy file with a header of our choice.
fn npy(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

fn f4(shape: &str) -> String {
    format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}")
}

/// A zip archive of one deflated member with sizes of our choice.
fn zip_of(name: &str, content: &[u8], claimed_size: u32, crc: u32) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(content).unwrap();
    let packed = encoder.finish().unwrap();
    let mut common = Vec::new();
    for half in [20u16, 0, 8, 0, 0x21] {
        common.extend(half.to_le_bytes());
    }
    for word in [crc, packed.len() as u32, claimed_size] {
        common.extend(word.to_le_bytes());
    }
    common.extend((name.len() as u16).to_le_bytes());
    common.extend([0, 0]);
    let mut file = [b"PK\x03\x04", &common[..], name.as_bytes(), &packed].concat();
    let start = file.len() as u32;
    let entry = [b"PK\x01\x02\x14\x00", &common[..], &[0; 14], name.as_bytes()].concat();
    file.extend(&entry);
    file.extend(b"PK\x05\x06\x00\x00\x00\x00\x01\x00\x01\x00");
    file.extend((entry.len() as u32).to_le_bytes());
    file.extend(start.to_le_bytes());
    file.extend([0, 0]);
    file
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

fn written(folder: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

/// The message without the folder, which differs from run to run.
fn message(error: DataError, path: &Path) -> String {
    error.to_string().replace(&path.display().to_string(), path.file_name().unwrap().to_str().unwrap())
}

#[test]
fn demonstrations_of_every_policy_open() {
    for policy in qail_fixtures::POLICIES {
        let Some(path) = policy.demos_path() else { continue };
        let inputs = [(policy.signature.input, &[policy.signature.n_observations][..])];
        let demos = Demos::open(&path, &inputs, &DemoMap::default()).unwrap();
        assert_eq!(demos.observations()[0].key, "observations");
        assert_eq!(demos.actions().unwrap().info.shape, [demos.n_steps(), policy.signature.n_actions]);
        assert_eq!(demos.episodes().last().unwrap().end, demos.n_steps());
    }
}

#[test]
fn any_portions_give_the_same_rows() {
    let demos = Demos::open(&demos_of("hopper_expert"), &[("obs", &[11])], &DemoMap::default()).unwrap();
    let field = &demos.observations()[0];
    let whole = demos.read(field, 0..demos.n_steps()).unwrap();
    assert_eq!((demos.n_steps(), whole.len()), (18_519, 18_519 * 11));
    let mut reader = demos.stream(field).unwrap();
    let mut streamed = Vec::new();
    while reader.next(1000, &mut streamed).unwrap() > 0 {}
    assert_eq!(whole, streamed);
    assert_eq!(demos.read(field, 12_345..12_350).unwrap(), whole[12_345 * 11..12_350 * 11]);
    assert_eq!(demos.read(field, 3..3).unwrap(), [0f32; 0]);
}

#[test]
fn the_first_numbers_are_those_that_numpy_reads() {
    let npz = Npz::open(&plain()).unwrap();
    assert_eq!(npz.keys().collect::<Vec<_>>(), ["actions", "episode_ends", "observations", "rewards", "terminals"]);
    assert_eq!(npz.info("terminals").unwrap().ty, NumberType::Bool);
    assert_eq!(npz.read_i64("episode_ends", 0..2).unwrap(), [20, 45]);
    assert_eq!(npz.read_f32("observations", 0..1).unwrap()[..3], [1.247_697_8, -0.004_590_265, -0.004_834_723_7]);
}

#[test]
fn every_type_survives_writing_and_reading() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("all.npz");
    let mut writer = NpzWriter::create(&path).unwrap();
    writer.add("f32", &[2, 2], &[1.5f32, -0.0, f32::MIN_POSITIVE, 3e38]).unwrap();
    writer.add("f64", &[2], &[0.1f64, -1e300]).unwrap();
    writer.add("i8", &[3], &[-128i8, 0, 127]).unwrap();
    writer.add("u8", &[2], &[0u8, 255]).unwrap();
    writer.add("i16", &[2], &[-32_639i16, 32_639]).unwrap();
    writer.add("i32", &[2], &[i32::MIN, i32::MAX]).unwrap();
    writer.add("i64", &[1], &[i64::MIN]).unwrap();
    writer.add::<f32>("empty", &[0, 4], &[]).unwrap();
    writer.finish().unwrap();
    let npz = Npz::open(&path).unwrap();
    assert_eq!(npz.read_f32("f32", 0..2).unwrap(), [1.5, -0.0, f32::MIN_POSITIVE, 3e38]);
    let mut f64s = Vec::new();
    assert_eq!(npz.rows("f64").unwrap().next_f64(9, &mut f64s).unwrap(), 2);
    assert_eq!(f64s, [0.1, -1e300]);
    assert_eq!(npz.read_i64("i8", 0..3).unwrap(), [-128, 0, 127]);
    assert_eq!(npz.read_i64("u8", 1..2).unwrap(), [255]);
    assert_eq!(npz.read_i64("i16", 0..2).unwrap(), [-32_639, 32_639]);
    assert_eq!(npz.read_i64("i32", 0..2).unwrap(), [i64::from(i32::MIN), i64::from(i32::MAX)]);
    assert_eq!(npz.read_i64("i64", 0..1).unwrap(), [i64::MIN]);
    assert_eq!(npz.info("empty").unwrap().shape, [0, 4]);
}

#[test]
fn the_same_arrays_give_the_same_bytes() {
    let folder = TempDir::new().unwrap();
    let paths = ["a.npz", "b.npz"].map(|name| folder.path().join(name));
    for path in &paths {
        write_npz(path, &[("actions", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])]).unwrap();
    }
    assert_eq!(fs::read(&paths[0]).unwrap(), fs::read(&paths[1]).unwrap());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "a temporary file was left behind");
}

#[test]
fn a_shape_that_does_not_fit_is_not_written() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.npz");
    let error = write_npz(&path, &[("actions", &[2, 3], &[1.0])]).unwrap_err();
    assert_eq!(message(error, &path), "`a.npz`: array `actions` has shape [2, 3], needed is one of 1 elements");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_folder_of_arrays_reads_like_an_archive() {
    let folder = TempDir::new().unwrap();
    let data: Vec<u8> = [1f32, 2.0, 3.0, 4.0, 5.0, 6.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    written(&folder, "obs.npy", &npy(&f4("(3, 2)"), &data));
    written(&folder, "notes.txt", b"not an array");
    let demos = Demos::open(folder.path(), &[("obs", &[1, 2])], &DemoMap::default()).unwrap();
    assert_eq!(demos.read(&demos.observations()[0], 1..3).unwrap(), [3.0, 4.0, 5.0, 6.0]);
    assert_eq!((demos.episodes().len(), demos.actions()), (1, None));
    let one = Npz::open(&folder.path().join("obs.npy")).unwrap();
    assert_eq!(one.read_f32("obs", 2..3).unwrap(), [5.0, 6.0]);
}

#[test]
fn a_mapping_names_the_arrays() {
    let map = |pairs: &[(&str, &str)]| {
        let inputs = pairs.iter().map(|(name, key)| ((*name).to_owned(), (*key).to_owned())).collect();
        DemoMap { inputs }
    };
    let both = map(&[("obs", "actions"), ("actions", "rewards")]);
    let demos = Demos::open(&plain(), &[("obs", &[3])], &both).unwrap();
    assert_eq!((demos.observations()[0].key.as_str(), demos.actions().unwrap().key.as_str()), ("actions", "rewards"));
    // An input of that name comes first.
    let demos = Demos::open(&plain(), &[("actions", &[11])], &map(&[("actions", "observations")])).unwrap();
    assert_eq!(demos.actions().unwrap().key, "actions");
    let error = Demos::open(&plain(), &[("obs", &[11])], &map(&[("actions", "torques")])).unwrap_err();
    assert_eq!(
        message(error, &plain()),
        "`plain.npz` has no array `torques`, only `actions`, `episode_ends`, `observations`, `rewards`, `terminals`; \
         name the array with --map INPUT=KEY"
    );
}

#[test]
fn a_wrong_width_names_the_array_and_the_input() {
    let error = Demos::open(&plain(), &[("obs", &[17])], &DemoMap::default()).unwrap_err();
    assert_eq!(
        message(error, &plain()),
        "`plain.npz`: array `observations` has shape [45, 11], needed is [steps, 17] for input `obs`"
    );
}

#[test]
fn a_recording_may_have_a_weight_for_each_step() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("weighed.npz");
    let open = |map: &[(&str, &str)], shape: &[usize]| {
        let arrays = [("observations", &[4, 1][..], &[0.0; 4][..]), ("weights", shape, &[1.0, 0.0, 2.0, 0.5])];
        write_npz(&path, &arrays).unwrap();
        let inputs = map.iter().map(|(name, key)| ((*name).to_owned(), (*key).to_owned())).collect();
        Demos::open(&path, &[("obs", &[1])], &DemoMap { inputs })
    };
    let demos = open(&[], &[4]).unwrap();
    assert_eq!(demos.read(demos.weights().unwrap(), 0..4).unwrap(), [1.0, 0.0, 2.0, 0.5]);
    assert_eq!(open(&[("weights", "observations")], &[4, 1]).unwrap().weights().unwrap().key, "observations");
    assert_eq!(
        message(open(&[], &[2, 2]).unwrap_err(), &path),
        "`weighed.npz`: array `weights` has shape [2, 2], needed is [4, ..], one row a step"
    );
    // Weights are no input, and an input is no weight.
    let demos = Demos::open(&path, &[("weights", &[2])], &DemoMap::default()).unwrap();
    assert_eq!(demos.weights(), None);
}

#[test]
fn a_nan_names_its_step() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("nan.npz");
    write_npz(&path, &[("observations", &[3, 2], &[0.0, 1.0, 2.0, 3.0, 4.0, f32::NAN])]).unwrap();
    let demos = Demos::open(&path, &[("obs", &[2])], &DemoMap::default()).unwrap();
    let error = demos.read(&demos.observations()[0], 1..3).unwrap_err();
    assert_eq!(
        message(error, &path),
        "`nan.npz`: array `observations` has NaN at row 2, column 1, which is step 2 of episode 0; remove that step or repair the recording"
    );
}

#[test]
fn episode_ends_must_ascend_to_the_number_of_steps() {
    let folder = TempDir::new().unwrap();
    for (ends, index) in [(vec![2i64, 2, 4], 1), (vec![3, 5], 1), (vec![2, 3], 1), (vec![-1, 4], 0)] {
        let path = folder.path().join("ends.npz");
        let mut writer = NpzWriter::create(&path).unwrap();
        writer.add("observations", &[4, 1], &[0f32; 4]).unwrap();
        writer.add("episode_ends", &[ends.len()], &ends).unwrap();
        writer.finish().unwrap();
        match Demos::open(&path, &[("obs", &[1])], &DemoMap::default()) {
            Err(DataError::EpisodeEnds { index: found, n_steps: 4, .. }) => assert_eq!(found, index, "{ends:?}"),
            other => panic!("{ends:?}: {other:?}"),
        }
    }
}

#[test]
fn fortran_order_and_odd_types_say_what_to_do() {
    let folder = TempDir::new().unwrap();
    let header = f4("(2, 3)").replace("False", "True");
    let path = written(&folder, "a.npy", &npy(&header, &[0; 24]));
    assert_eq!(
        message(Npz::open(&path).unwrap_err(), &path),
        "`a.npy`: array `a` is stored in Fortran order; save numpy.ascontiguousarray(a) instead"
    );
    let path = written(&folder, "b.npy", &npy(&f4("(2, 3)").replace("<f4", ">f4"), &[0; 24]));
    assert!(message(Npz::open(&path).unwrap_err(), &path).contains("elements of type >f4"));
}

#[test]
fn a_wrong_checksum_is_found_at_the_end() {
    let folder = TempDir::new().unwrap();
    let content = npy(&f4("(2, 1)"), &[0; 8]);
    let good = written(&folder, "good.npz", &zip_of("a.npy", &content, content.len() as u32, crc32(&content)));
    assert_eq!(Npz::open(&good).unwrap().read_f32("a", 0..2).unwrap(), [0.0, 0.0]);
    let bad = written(&folder, "bad.npz", &zip_of("a.npy", &content, content.len() as u32, 1));
    let error = Npz::open(&bad).unwrap().read_f32("a", 0..2).unwrap_err();
    assert_eq!(
        message(error, &bad),
        "`bad.npz`: array `a` is damaged: its checksum is wrong; write it again with numpy"
    );
}

#[test]
fn a_header_that_claims_ten_gigabytes_is_refused() {
    let folder = TempDir::new().unwrap();
    let content = npy(&f4("(2500000000,)"), &[0; 64]);
    let path = written(&folder, "a.npy", &content);
    assert_eq!(
        message(Npz::open(&path).unwrap_err(), &path),
        "`a.npy`: array `a` is damaged: shape [2500000000] does not take the 64 bytes that are there; \
         write it again with numpy"
    );
    // The directory of the archive lies as well.
    let path = written(&folder, "a.npz", &zip_of("a.npy", &content, u32::MAX - 1, crc32(&content)));
    assert_eq!(
        message(Npz::open(&path).unwrap_err(), &path),
        "`a.npz` is not a sound npz file: a member claims more bytes than it can hold; \
         write it again with numpy.savez"
    );
}

#[test]
fn a_bomb_is_read_in_portions_or_not_at_all() {
    // 1.1 GB of zeros in 5 MB.
    const N: u32 = 275_000_000;
    let folder = TempDir::new().unwrap();
    let header = npy(&f4(&format!("({}, 1000)", N / 1000)), &[]);
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&header).unwrap();
    let zeros = vec![0; 1 << 20];
    let mut left = u64::from(N) * 4;
    while left > 0 {
        let n = left.min(zeros.len() as u64);
        encoder.write_all(&zeros[..n as usize]).unwrap();
        left -= n;
    }
    let packed = encoder.finish().unwrap();
    let mut file = zip_of("a.npy", &[], N * 4 + header.len() as u32, 0);
    // Puts the long member in place of the empty one: sizes in both headers.
    let empty_len = {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&[]).unwrap();
        encoder.finish().unwrap().len()
    };
    let data_at = 30 + "a.npy".len();
    file.splice(data_at..data_at + empty_len, packed.iter().copied());
    let directory_at = data_at + packed.len();
    for at in [18, directory_at + 20] {
        file[at..at + 4].copy_from_slice(&(packed.len() as u32).to_le_bytes());
    }
    let end_at = file.len() - 6;
    file[end_at..end_at + 4].copy_from_slice(&(directory_at as u32).to_le_bytes());
    let path = written(&folder, "bomb.npz", &file);

    let before = peak_memory_kib();
    let npz = Npz::open(&path).unwrap();
    assert!(matches!(npz.read_f32("a", 0..N as usize / 1000), Err(DataError::TooMuch { limit_mib: 1024, .. })));
    let mut reader = npz.rows("a").unwrap();
    let mut rows = Vec::new();
    for _ in 0..10 {
        rows.clear();
        reader.next_f32(100, &mut rows).unwrap();
    }
    if let (Some(before), Some(after)) = (before, peak_memory_kib()) {
        assert!(after - before < 16 << 10, "{before} KiB grew to {after} KiB");
    }
}

/// Largest resident memory of this process so far, where the system tells.
fn peak_memory_kib() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[test]
fn every_truncation_is_an_error_or_sound() {
    let folder = TempDir::new().unwrap();
    let bytes = fs::read(plain()).unwrap();
    for len in 0..bytes.len() {
        let path = written(&folder, "cut.npz", &bytes[..len]);
        assert!(read_everything(&path).is_err(), "{len}");
    }
}

#[test]
fn mutants_do_not_panic_and_stay_small() {
    let n_mutants = qail_fixtures::n_mutants(2000);
    let folder = TempDir::new().unwrap();
    let stored = folder.path().join("stored.npz");
    write_npz(&stored, &[("observations", &[9, 2], &[0.5; 18]), ("actions", &[9, 1], &[0.25; 9])]).unwrap();
    let seeds = [fs::read(plain()).unwrap(), fs::read(&stored).unwrap(), npy(&f4("(3, 2)"), &[0; 24])];
    let (mut n_sound, mut random) = (0, Random(1));
    for mutant in 0..n_mutants {
        let seed = &seeds[(mutant % 3) as usize];
        let name = if mutant % 3 == 2 { "m.npy" } else { "m.npz" };
        let path = written(&folder, name, &mutate(seed, &mut random));
        n_sound += u64::from(read_everything(&path).is_ok());
    }
    // Some mutations hit unused bytes; most must be noticed.
    assert!(n_sound < n_mutants / 2, "{n_sound} of {n_mutants} mutants were read");
}

/// Reads all arrays in portions and, if they look like demonstrations, as such.
fn read_everything(path: &Path) -> Result<(), DataError> {
    let npz = Npz::open(path)?;
    let mut rows = Vec::new();
    for key in npz.keys() {
        let mut reader = npz.rows(key)?;
        let mut n_bytes = 0;
        loop {
            rows.clear();
            if reader.next_f32(64, &mut rows)? == 0 {
                break;
            }
            n_bytes += rows.len() * 4;
            // No mutant of a file of a few KiB holds more than deflate can reach.
            assert!(n_bytes < 16 << 20, "{key}");
        }
    }
    let demos = Demos::open(path, &[("obs", &[11])], &DemoMap::default());
    if let Ok(demos) = demos {
        demos.read(&demos.observations()[0], 0..demos.n_steps())?;
    }
    Ok(())
}

/// Flips bits, writes bytes, cuts, doubles, or writes telling numbers.
fn mutate(seed: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len().max(1));
        let Some(byte) = bytes.get_mut(at) else { continue };
        match random.below(6) {
            0 => *byte ^= 1 << random.below(8),
            1 => *byte = random.below(256) as u8,
            2 => bytes.truncate(at),
            3 => {
                let copy = bytes[at..bytes.len().min(at + 64)].to_vec();
                bytes.splice(at..at, copy);
            }
            4 => {
                let telling = [0u32, 1, u32::MAX, u32::MAX - 1, 0x7FFF_FFFF, 0xFFFF];
                let word = telling[random.below(telling.len())].to_le_bytes();
                let end = bytes.len().min(at + 4);
                bytes[at..end].copy_from_slice(&word[..end - at]);
            }
            // The directory at the end of an archive deserves more attention.
            _ => {
                let at = bytes.len() - 1 - random.below(bytes.len().min(400));
                bytes[at] = random.below(256) as u8;
            }
        }
    }
    bytes
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}
