use std::fs;
use std::path::Path;

use super::*;
use crate::error::Error;

/// Pseudo-random rows.
fn random(rows: usize, len: usize) -> Vec<Vec<f32>> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut value = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..rows).map(|_| (0..len).map(|_| value()).collect()).collect()
}

/// Cosine by its definition, in f64.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn reason(error: Error) -> IndexError {
    match error {
        Error::Index(reason) | Error::IndexFile { reason, .. } => reason,
        other => panic!("{other}"),
    }
}

#[test]
fn neighbours_are_those_of_a_plain_loop_alone_and_in_blocks() {
    for (rows, len, count) in [(1, 1, 1), (700, 37, 9), (2_000, 128, 3), (50, 1_280, 50)] {
        let (all, queries) = (random(rows, len), random(70, len));
        let index = Index::from_rows(len, &all).unwrap();
        let found = index.nearest_all(&queries, count).unwrap();
        for (query, found) in queries.iter().zip(&found) {
            let mut plain: Vec<(usize, f64)> =
                all.iter().enumerate().map(|(row, values)| (row, cosine(values, query))).collect();
            plain.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            assert_eq!(found.len(), count.min(rows));
            for (neighbour, (row, cosine)) in found.iter().zip(plain) {
                assert_eq!(neighbour.row, row, "{rows} x {len}");
                assert!((f64::from(neighbour.cosine) - cosine).abs() < 1e-5);
            }
            assert_eq!(&index.nearest(query, count).unwrap(), found, "the same bits alone");
        }
    }
}

#[test]
fn of_equal_rows_the_lower_comes_first_and_all_may_be_requested() {
    let mut rows = random(3_000, 24);
    for row in [5, 1_500, 2_999] {
        rows[row] = rows[77].iter().map(|value| value * 4.0).collect();
    }
    let index = Index::from_rows(24, &rows).unwrap();
    let near = index.nearest(&rows[77], 4).unwrap();
    assert_eq!(near.iter().map(|one| one.row).collect::<Vec<_>>(), [5, 77, 1_500, 2_999]);
    assert!((near[0].cosine - 1.0).abs() < 1e-6 && near[0].cosine <= 1.0);
    assert_eq!(index.nearest(&rows[77], 1).unwrap()[0].row, 5);
    assert_eq!(index.nearest(&rows[77], usize::MAX).unwrap().len(), 3_000);
    assert!(index.nearest(&rows[77], 0).unwrap().is_empty());
    let zeros = index.nearest(&[0.0; 24], 2).unwrap();
    assert_eq!(
        zeros.iter().map(|one| (one.row, one.cosine)).collect::<Vec<_>>(),
        [(0, 0.0), (1, 0.0)]
    );
}

#[test]
fn pairs_are_those_of_a_plain_loop() {
    let rows = random(400, 12);
    let index = Index::from_rows(12, &rows).unwrap();
    let pairs = index.pairs(0.8, usize::MAX);
    let mut plain = Vec::new();
    for a in 0..rows.len() {
        plain.extend((a + 1..rows.len()).map(|b| (cosine(&rows[a], &rows[b]), [a, b])));
    }
    plain.retain(|(cosine, _)| *cosine >= 0.8);
    plain.sort_by(|a, b| b.0.total_cmp(&a.0));
    let ours: Vec<_> = pairs.iter().map(|pair| pair.rows).collect();
    assert!(plain.len() > 20, "{}", plain.len());
    assert_eq!(ours, plain.iter().map(|(_, rows)| *rows).collect::<Vec<_>>());
    assert_eq!(index.pairs(0.8, 7), pairs[..7]);
}

#[test]
fn embeddings_that_do_not_fit_the_index_are_refused() {
    let mut index = Index::new(3);
    assert!(index.nearest(&[1.0, 0.0, 0.0], 5).unwrap().is_empty());
    assert!(index.pairs(0.0, 5).is_empty());
    let length = IndexError::Length { found: 2, expected: 3 };
    assert_eq!(reason(index.push(&[1.0, 0.0]).unwrap_err()), length);
    assert_eq!(reason(index.nearest(&[1.0, 0.0], 1).unwrap_err()), length);
    for odd in [f32::NAN, f32::INFINITY] {
        assert_eq!(reason(index.push(&[0.0, odd, 0.0]).unwrap_err()), IndexError::NotFinite);
        assert_eq!(reason(index.nearest(&[0.0, odd, 0.0], 1).unwrap_err()), IndexError::NotFinite);
    }
    assert!(index.is_empty());
    assert!(Index::new(0).push(&[]).is_err() && Index::new(0).is_empty());
    index.push(&[f32::MAX, f32::MAX, 0.0]).unwrap();
    assert!(index.row(0).unwrap()[0] > 0.7, "squares beyond the largest f32");
    assert_eq!((index.row(1), index.row(usize::MAX)), (None, None));
}

/// The bytes of an index's rows.
fn npy(rows: &[Vec<f32>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    Index::from_rows(rows[0].len(), rows).unwrap().write_npy(&mut bytes).unwrap();
    bytes
}

fn load(folder: &Path, bytes: &[u8]) -> Result<Index> {
    let path = folder.join("rows.npy");
    fs::write(&path, bytes).unwrap();
    Index::load_npy(&path)
}

#[test]
fn rows_come_back_and_every_truncated_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let rows = random(3, 5);
    let whole = npy(&rows);
    assert_eq!(whole.len(), 128 + 3 * 5 * 4);
    let index = load(folder.path(), &whole).unwrap();
    assert_eq!(index, Index::from_rows(5, &rows).unwrap());
    let mut writer = NpyWriter::new(std::io::Cursor::new(Vec::new()), 5).unwrap();
    (0..3).for_each(|row| writer.write_row(index.row(row).unwrap()).unwrap());
    assert!(writer.write_row(&[1.0]).is_err());
    assert_eq!(writer.finish().unwrap().into_inner(), whole, "row by row");
    for length in 0..whole.len() {
        let error = load(folder.path(), &whole[..length]).unwrap_err();
        assert!(matches!(reason(error), IndexError::Npy(_)), "{length} bytes");
    }
    let longer = [&whole[..], &[0; 4]].concat();
    assert!(matches!(reason(load(folder.path(), &longer).unwrap_err()), IndexError::Npy(_)));
    assert!(matches!(Index::load_npy(folder.path().join("none")), Err(Error::Io { .. })));
}

#[test]
fn files_of_another_layout_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let whole = npy(&random(3, 5));
    let with = |from: &str, to: &str| {
        let head = String::from_utf8_lossy(&whole[10..128]).replace(from, to);
        [&whole[..10], &format!("{head:<118}").as_bytes()[..118], &whole[128..]].concat()
    };
    for bytes in [
        with("<f4", "<f8"),
        with("False", "True"),
        with("(3, 5)", "(5, 5)"),
        with("(3, 5)", "(15,)"),
        with("(3, 5)", "(0, 0)"),
        with("(3, 5)", "(9223372036854775807, 4)"),
        with("(3, 5)", "(-3, 5)"),
        with("(3, 5)", "3, 5"),
        with("'shape'", "'shame'"),
        [b"\x93NUMPY\x02\x00", &whole[8..]].concat(),
    ] {
        let error = reason(load(folder.path(), &bytes).unwrap_err());
        assert!(matches!(error, IndexError::Npy(_)), "{error}");
    }
    for value in [f32::NAN, 9.0] {
        let mut bytes = whole.clone();
        bytes[128 + 5 * 4..][..4].copy_from_slice(&value.to_le_bytes());
        assert_eq!(reason(load(folder.path(), &bytes).unwrap_err()), IndexError::Norm(1));
    }
}

#[test]
fn rows_can_be_replaced_and_removed() {
    let rows = random(5, 4);
    let mut index = Index::from_rows(4, &rows).unwrap();
    index.set(1, &rows[4]).unwrap();
    index.retain(&[true, true, false, false, true]);
    assert_eq!(index, Index::from_rows(4, [&rows[0], &rows[4], &rows[4]]).unwrap());
    index.retain(&[false; 3]);
    assert!(index.is_empty());
}
