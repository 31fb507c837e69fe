//! Minimisation of a convex function by L-BFGS (D. C. Liu and J. Nocedal, "On the limited memory
//! BFGS method for large scale optimization", Mathematical Programming 45, 1989).

use std::collections::VecDeque;

/// Number of corrections that L-BFGS keeps.
const HISTORY: usize = 10;
const MAX_ITERATIONS: usize = 100;
const MAX_HALVINGS: i32 = 20;
/// Share of the decrease predicted by the directional derivative that a step has to reach (Armijo condition).
const SUFFICIENT_DECREASE: f64 = 1e-4;
/// The search also ends where `STALL_ITERATIONS` iterations lowered the loss by less than this fraction of it.
const LOSS_TOLERANCE: f64 = 1e-5;
const STALL_ITERATIONS: usize = 5;

/// A function's value and gradient at some parameters.
pub(super) struct Point {
    pub(super) parameters: Vec<f32>,
    pub(super) loss: f64,
    pub(super) gradient: Vec<f32>,
}

/// Step, change of the gradient along it and their product.
type Correction = (Vec<f32>, Vec<f32>, f64);

/// Parameters at which the norm of the gradient is at most `tolerance`, the loss hardly falls any more, or
/// `MAX_ITERATIONS` are over.
///
/// A step is halved until it meets the Armijo condition. The curvature condition of Wolfe need not be tested: the
/// directional derivative of a convex function does not decrease along a step.
pub(super) fn minimise(
    evaluate: impl Fn(Vec<f32>) -> Point,
    start: Vec<f32>,
    tolerance: f64,
) -> Vec<f32> {
    let mut point = evaluate(start);
    let mut history = VecDeque::new();
    let mut losses = VecDeque::from([point.loss]);
    for _ in 0..MAX_ITERATIONS {
        if norm(&point.gradient) <= tolerance {
            break;
        }
        let direction = descent_direction(&point.gradient, &history);
        let derivative = dot(&point.gradient, &direction);
        let next = (0..MAX_HALVINGS).map(|halvings| 0.5f32.powi(halvings)).find_map(|length| {
            let next = evaluate(sum(&point.parameters, length, &direction));
            let enough = point.loss + SUFFICIENT_DECREASE * f64::from(length) * derivative;
            (next.loss <= enough).then_some(next)
        });
        let Some(next) = next else { break };
        let step = sum(&next.parameters, -1.0, &point.parameters);
        let change = sum(&next.gradient, -1.0, &point.gradient);
        let product = dot(&step, &change);
        if product > 0.0 {
            history.truncate(HISTORY - 1);
            history.push_front((step, change, product));
        }
        point = next;
        losses.truncate(STALL_ITERATIONS);
        losses.push_front(point.loss);
        let earlier = losses.get(STALL_ITERATIONS);
        if earlier.is_some_and(|loss| loss - point.loss < LOSS_TOLERANCE * loss) {
            break;
        }
    }
    point.parameters
}

/// The two-loop recursion of L-BFGS over corrections, the newest first.
pub(super) fn descent_direction(gradient: &[f32], history: &VecDeque<Correction>) -> Vec<f32> {
    let mut direction: Vec<f32> = gradient.iter().map(|x| -x).collect();
    let mut factors = Vec::new();
    for (step, change, product) in history {
        factors.push(dot(step, &direction) / product);
        add_scaled(&mut direction, -factors[factors.len() - 1] as f32, change);
    }
    if let Some((_, change, product)) = history.front() {
        let scale = (product / dot(change, change)) as f32;
        direction.iter_mut().for_each(|x| *x *= scale);
    }
    for ((step, change, product), factor) in history.iter().zip(factors).rev() {
        let factor = factor - dot(change, &direction) / product;
        add_scaled(&mut direction, factor as f32, step);
    }
    direction
}

pub(super) fn add_scaled(sums: &mut [f32], factor: f32, terms: &[f32]) {
    sums.iter_mut().zip(terms).for_each(|(sum, term)| *sum += factor * term);
}

fn sum(left: &[f32], factor: f32, right: &[f32]) -> Vec<f32> {
    left.iter().zip(right).map(|(left, right)| left + factor * right).collect()
}

pub(super) fn dot(left: &[f32], right: &[f32]) -> f64 {
    let mut sums = [0.0; 8];
    for (left, right) in left.chunks(8).zip(right.chunks(8)) {
        for ((sum, &left), &right) in sums.iter_mut().zip(left).zip(right) {
            *sum += f64::from(left) * f64::from(right);
        }
    }
    sums.iter().sum()
}

pub(super) fn norm(vector: &[f32]) -> f64 {
    dot(vector, vector).sqrt()
}
