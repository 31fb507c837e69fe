//! From listed photos to rows, in order and in bounded memory: readers, decoders and the network work side by side.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::ScopedJoinHandle;

use anyhow::{Result, anyhow};
use petnet::preprocess::Pixels;
use petnet::{Classifier, Prediction};
use rayon::prelude::*;

use super::listing::{Item, Load, Photo};

/// The outcome of one image.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) path: String,
    /// The prediction, or why there is none.
    pub(super) outcome: Result<Prediction, String>,
    /// Empty where there is no answer.
    pub(super) embedding: Vec<f32>,
}

/// How much is done at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lanes {
    /// Photos that are read at once.
    pub(super) readers: usize,
    /// Photos that pass through the network together.
    pub(super) batch: usize,
}

/// A photo in its place in the order; its bytes follow from whichever reader got it.
struct Slot {
    path: String,
    photo: Receiver<Result<Photo>>,
}

type Job = (Load, SyncSender<Result<Photo>>);
type Decoded = Vec<(String, Result<Pixels, String>)>;
type Give<'a> = &'a mut dyn FnMut(Item) -> Result<()>;

/// Scores what `list` sends and hands each row to `take`, in the order of the listing. Returns what `list` returned.
pub(super) fn run<T: Send>(
    lanes: Lanes,
    classifier: &Classifier,
    list: impl FnOnce(Give) -> Result<T> + Send,
    mut take: impl FnMut(Row) -> Result<()>,
) -> Result<T> {
    let (jobs, waiting) = sync_channel::<Job>(lanes.readers);
    let (slots, in_order) = sync_channel::<Slot>(lanes.readers);
    let (decoded, batches) = sync_channel::<Decoded>(1);
    let waiting = Mutex::new(waiting);
    std::thread::scope(|scope| {
        for _ in 0..lanes.readers {
            scope.spawn(|| read(&waiting));
        }
        let lister = scope.spawn(move || list(&mut |item| pass_on(item, &slots, &jobs)));
        let decoder = scope.spawn(move || decode(&in_order, lanes.batch, classifier, &decoded));
        let scored = score(batches, classifier, &mut take);
        let (decoded, listed) = (joined(decoder), joined(lister));
        // Later stages first: an earlier one that was hung up on only knows that it was.
        scored.and(decoded).and(listed)
    })
}

fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn pass_on(item: Item, slots: &SyncSender<Slot>, jobs: &SyncSender<Job>) -> Result<()> {
    let (answer, photo) = sync_channel(1);
    let hung_up = |_| anyhow!("the run stopped");
    slots.send(Slot { path: item.path, photo }).map_err(|_| anyhow!("the run stopped"))?;
    jobs.send((item.load, answer)).map_err(hung_up)
}

fn read(waiting: &Mutex<Receiver<Job>>) {
    loop {
        let job = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((load, answer)) = job else { return };
        // Nobody waits for the answer where the run stopped.
        let _ = answer.send(load());
    }
}

fn decode(
    in_order: &Receiver<Slot>,
    batch: usize,
    classifier: &Classifier,
    decoded: &SyncSender<Decoded>,
) -> Result<()> {
    loop {
        let mut photos = Vec::with_capacity(batch);
        for Slot { path, photo } in in_order.iter().take(batch) {
            photos.push((path, photo.recv().map_err(|_| anyhow!("a reader ended early"))??));
        }
        if photos.is_empty() {
            return Ok(());
        }
        let one = |(path, photo): (String, Photo)| {
            let pixels =
                photo.and_then(|bytes| classifier.preprocess(&bytes).map_err(|e| e.to_string()));
            (path, pixels)
        };
        if decoded.send(photos.into_par_iter().map(one).collect()).is_err() {
            return Ok(());
        }
    }
}

fn score(
    batches: Receiver<Decoded>,
    classifier: &Classifier,
    take: &mut dyn FnMut(Row) -> Result<()>,
) -> Result<()> {
    for batch in batches {
        let mut pictures = Vec::with_capacity(batch.len());
        let mut rows = Vec::with_capacity(batch.len());
        for (path, pixels) in batch {
            rows.push((path, pixels.map(|pixels| pictures.push(pixels))));
        }
        let mut answers = classifier.classify_and_embed(&pictures)?.into_iter();
        for (path, outcome) in rows {
            let (outcome, embedding) = match outcome {
                Ok(()) => {
                    let answer = answers.next().ok_or_else(|| anyhow!("an answer is missing"))?;
                    (Ok(answer.0), answer.1)
                }
                Err(reason) => (Err(reason), Vec::new()),
            };
            take(Row { path, outcome, embedding })?;
        }
    }
    Ok(())
}
