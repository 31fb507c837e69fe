//! Pipeline from listed images to rows, in order and in bounded memory.
//!
//! The lister sends each image as a [`Slot`], which keeps the order, and as a [`Job`] to the reader threads. The decoder takes
//! the slots in order, waits for each one's bytes and decodes batches in parallel; the calling thread runs the network on
//! them. Channels between the stages are bounded.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::ScopedJoinHandle;

use anyhow::{Result, anyhow};
use petnet::preprocess::Pixels;
use petnet::{Classifier, Prediction};
use rayon::prelude::*;

use super::listing::{ImageBytes, Item, Load};

/// The outcome of one image.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) path: String,
    /// The prediction, or why there is none.
    pub(super) outcome: Result<Prediction, String>,
    /// Empty where there is no prediction.
    pub(super) embedding: Vec<f32>,
}

/// Number of images that each stage processes at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Concurrency {
    /// Images that are read concurrently.
    pub(super) readers: usize,
    /// Images in a batch of the network.
    pub(super) batch: usize,
}

/// Place of an image in the order; its bytes come from the reader thread that takes the job.
struct Slot {
    path: String,
    image: Receiver<Result<ImageBytes>>,
}

/// Reads an image, and the channel to its slot.
type Job = (Load, SyncSender<Result<ImageBytes>>);
type Decoded = Vec<(String, Result<Pixels, String>)>;
type SendItem<'a> = &'a mut dyn FnMut(Item) -> Result<()>;

/// Classifies the images that `list` sends and passes each row to `on_row`, in the order of the listing. Returns the result of
/// `list`.
pub(super) fn run<T: Send>(
    concurrency: Concurrency,
    classifier: &Classifier,
    list: impl FnOnce(SendItem) -> Result<T> + Send,
    mut on_row: impl FnMut(Row) -> Result<()>,
) -> Result<T> {
    let (jobs, waiting) = sync_channel::<Job>(concurrency.readers);
    let (slots, in_order) = sync_channel::<Slot>(concurrency.readers);
    let (decoded, batches) = sync_channel::<Decoded>(1);
    let waiting = Mutex::new(waiting);
    std::thread::scope(|scope| {
        for _ in 0..concurrency.readers {
            scope.spawn(|| read(&waiting));
        }
        let lister = scope.spawn(move || list(&mut |item| submit(item, &slots, &jobs)));
        let decoder =
            scope.spawn(move || decode(&in_order, concurrency.batch, classifier, &decoded));
        let classified = classify_batches(batches, classifier, &mut on_row);
        let (decoded, listed) = (join(decoder), join(lister));
        // The error of a later stage comes first: it is the cause, the earlier stages only saw their channel close.
        classified.and(decoded).and(listed)
    })
}

fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn submit(item: Item, slots: &SyncSender<Slot>, jobs: &SyncSender<Job>) -> Result<()> {
    let (answer, image) = sync_channel(1);
    let stopped = || anyhow!("the run stopped");
    slots.send(Slot { path: item.path, image }).map_err(|_| stopped())?;
    jobs.send((item.load, answer)).map_err(|_| stopped())
}

fn read(waiting: &Mutex<Receiver<Job>>) {
    loop {
        let job = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((load, answer)) = job else { return };
        // The slot is gone if the run stopped.
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
        let mut images = Vec::with_capacity(batch);
        for Slot { path, image } in in_order.iter().take(batch) {
            images.push((path, image.recv().map_err(|_| anyhow!("a reader ended early"))??));
        }
        if images.is_empty() {
            return Ok(());
        }
        let one = |(path, image): (String, ImageBytes)| {
            let pixels =
                image.and_then(|bytes| classifier.preprocess(&bytes).map_err(|e| e.to_string()));
            (path, pixels)
        };
        if decoded.send(images.into_par_iter().map(one).collect()).is_err() {
            return Ok(());
        }
    }
}

/// Runs the network on decoded batches, and passes a row for each image to `on_row`.
fn classify_batches(
    batches: Receiver<Decoded>,
    classifier: &Classifier,
    on_row: &mut dyn FnMut(Row) -> Result<()>,
) -> Result<()> {
    for batch in batches {
        let mut images = Vec::with_capacity(batch.len());
        let mut rows = Vec::with_capacity(batch.len());
        for (path, pixels) in batch {
            rows.push((path, pixels.map(|pixels| images.push(pixels))));
        }
        let mut predictions = classifier.classify_and_embed(&images)?.into_iter();
        for (path, outcome) in rows {
            let (outcome, embedding) = match outcome {
                Ok(()) => {
                    let next = predictions.next();
                    let (prediction, embedding) =
                        next.ok_or_else(|| anyhow!("a prediction is missing"))?;
                    (Ok(prediction), embedding)
                }
                Err(reason) => (Err(reason), Vec::new()),
            };
            on_row(Row { path, outcome, embedding })?;
        }
    }
    Ok(())
}
