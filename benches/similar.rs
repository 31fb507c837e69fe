//! Time of an exact search: one query alone, and blocks of 32, for indexes of growing size.
//!
//! Run with `cargo run --release --example similar -- [VALUES] [ROWS]...`, by default 1,280 values and 100,000 rows; a
//! million rows take 5.1 GB.

use std::time::{Duration, Instant};

use petnet::similar::Index;

/// Queries that are measured together.
const BLOCK: usize = 32;
/// Runs of which the median is printed.
const RUNS: usize = 7;

fn main() -> petnet::Result<()> {
    let numbers = std::env::args().skip(1).map(|text| text.parse().unwrap_or_default());
    let numbers: Vec<usize> = numbers.filter(|number| *number > 0).collect();
    let (len, sizes) = match numbers.as_slice() {
        [] => (1_280, vec![100_000]),
        [len] => (*len, vec![100_000]),
        [len, sizes @ ..] => (*len, sizes.to_vec()),
    };
    println!("{:>9} rows  alone ms  GB/s  block of {BLOCK} ms a query  GFLOP/s", "");
    let most = sizes.iter().copied().max().unwrap_or_default();
    let mut random = Random(1);
    let queries: Vec<Vec<f32>> = (0..BLOCK).map(|_| random.row(len)).collect();
    let mut index = Index::new(len);
    for rows in 1..=most {
        index.push(&random.row(len))?;
        if sizes.contains(&rows) {
            measure(&index, &queries)?;
        }
    }
    Ok(())
}

fn measure(index: &Index, queries: &[Vec<f32>]) -> petnet::Result<()> {
    let values = (index.len() * index.embedding_len()) as f64;
    let alone = median(|run| index.nearest(&queries[run], 10).map(drop))?.as_secs_f64();
    let block = median(|_| index.nearest_all(queries, 10).map(drop))?.as_secs_f64();
    let each = block / queries.len() as f64;
    println!(
        "{:>9}       {:>8.1}  {:>4.1}  {:>24.2}  {:>7.0}",
        index.len(),
        alone * 1e3,
        values * 4.0 / alone / 1e9,
        each * 1e3,
        values * 2.0 / each / 1e9
    );
    Ok(())
}

fn median(mut work: impl FnMut(usize) -> petnet::Result<()>) -> petnet::Result<Duration> {
    let mut times = Vec::new();
    for run in 0..RUNS {
        let began = Instant::now();
        work(run)?;
        times.push(began.elapsed());
    }
    times.sort();
    Ok(times[RUNS / 2])
}

/// Numbers of no pattern (xorshift).
struct Random(u64);

impl Random {
    /// Values from 0 to 1, as features are after an activation.
    fn row(&mut self, len: usize) -> Vec<f32> {
        let next = |_| {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 40) as f32 / (1 << 24) as f32
        };
        (0..len).map(next).collect()
    }
}
