use super::*;

/// Means of correlated ReLU6 maps and their classes, which shift eight factors common to all
/// features by `signal` times a random amount.
struct Set {
    features: Vec<f32>,
    targets: Vec<usize>,
    classes: usize,
}

const WIDTH: usize = 27;

impl Set {
    fn new(rows: usize, classes: usize, signal: f32, seed: u64) -> Set {
        const FACTORS: usize = 8;
        // Every set has the same mixture and classes, so that two sets are of one distribution.
        let mut shared = normals(0);
        let mixture: Vec<f32> = (0..FACTORS * WIDTH).map(|_| shared()).collect();
        let centres: Vec<f32> = (0..FACTORS * classes).map(|_| shared() * signal).collect();
        let mut normal = normals(seed);
        let mut set = Set { features: Vec::new(), targets: Vec::new(), classes };
        set.features.resize_with(rows * WIDTH, Default::default);
        for (index, row) in set.features.chunks_exact_mut(WIDTH).enumerate() {
            let class = index % classes;
            set.targets.push(class);
            for (centre, mixture) in centres.chunks(classes).zip(mixture.chunks(WIDTH)) {
                add_scaled(row, centre[class] + normal(), mixture);
            }
            row.iter_mut().for_each(|x| *x = (0.4 * *x + 0.3 * normal() - 0.2).clamp(0.0, 6.0));
        }
        set
    }

    fn samples(&self) -> Samples<'_> {
        let Set { features, targets, classes } = self;
        Samples { features, width: WIDTH, targets, classes: *classes, class_weights: None }
    }

    fn predicted(&self, linear: &Linear) -> Vec<usize> {
        let logits = logits(linear, &self.features);
        let largest = |row: &[f32]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]));
        logits.chunks(self.classes).filter_map(largest).collect()
    }

    fn accuracy(&self, linear: &Linear) -> f64 {
        let predicted = self.predicted(linear);
        let correct = predicted.iter().zip(&self.targets).filter(|(left, right)| left == right);
        correct.count() as f64 / predicted.len() as f64
    }
}

/// The layer that is fitted with a penalty by cross-validation, and that penalty.
fn chosen(samples: &Samples, seed: u64) -> (Linear, ChosenPenalty) {
    let penalty = Linear::choose_penalty(samples, seed);
    (Linear::fit(samples, penalty.l2, None), penalty)
}

/// Logits `[n, classes]` of raw features.
fn logits(linear: &Linear, features: &[f32]) -> Vec<f32> {
    let classes = linear.bias.len();
    let rows = features.chunks(linear.weights.len() / classes);
    rows.flat_map(|row| linear.logits(row)).collect()
}

fn normals(seed: u64) -> impl FnMut() -> f32 {
    let mut index = 0;
    move || {
        let uniform = |index| (random(seed, index) >> 40) as f32 / (1 << 24) as f32;
        index += 12;
        (index - 12..index).map(uniform).sum::<f32>() - 6.0
    }
}

/// The objective in f64, written without any of the code that is tested.
fn objective(data: &Data, parameters: &[f64], l2: f64) -> f64 {
    let classes = data.samples.classes;
    let weights = &parameters[..classes * data.width];
    let (mut loss, mut total) = (0.0, 0.0);
    for (row, &target) in data.features.chunks(data.width).zip(&data.targets) {
        let score = |class: usize| {
            let weights = &weights[class * data.width..][..data.width];
            let products = weights.iter().zip(row).map(|(weight, &x)| weight * f64::from(x));
            products.sum::<f64>() + parameters[classes * data.width + class]
        };
        let weight = data.samples.class_weights.map_or(1.0, |weights| f64::from(weights[target]));
        let sum: f64 = (0..classes).map(|class| score(class).exp()).sum();
        loss += weight * (sum.ln() - score(target));
        total += weight;
    }
    let squares: f64 = weights.iter().map(|weight| weight * weight).sum();
    loss / total + 0.5 * l2 / data.mean.len() as f64 * squares
}

#[test]
fn recovers_classes_of_held_out_samples() {
    let (linear, penalty) = chosen(&Set::new(201, 3, 1.5, 1).samples(), 5);
    let accuracy = Set::new(600, 3, 1.5, 2).accuracy(&linear);
    assert!(accuracy > 0.95, "{accuracy}");
    let estimate = penalty.accuracy.unwrap();
    assert!((estimate - accuracy).abs() < 0.04, "{estimate} {accuracy}");
}

#[test]
fn logits_are_products_with_raw_features() {
    let linear = Linear { weights: vec![1.0, 2.0, -3.0, 4.0, 0.0, 5.0], bias: vec![0.5, -1.0] };
    let logits = logits(&linear, &[1.0, 2.0, 3.0, 0.0, 1.0, 0.0]);
    assert_eq!(logits, [-4.5, 24.0, -2.5, 3.0]);
}

#[test]
fn gradient_agrees_with_finite_differences() {
    let set = Set::new(150, 3, 1.0, 3);
    let weights = [0.5, 1.0, 3.0];
    let samples = Samples { class_weights: Some(&weights), ..set.samples() };
    let data = Data::new(&samples, usize::MAX);
    let mut normal = normals(4);
    let parameters: Vec<f32> = data.zeros().iter().map(|_| normal()).collect();
    let point = Problem::new(&data, |_| true).evaluate(parameters, 2.0);
    let exact: Vec<f64> = point.parameters.iter().map(|&x| f64::from(x)).collect();
    assert!((point.loss - objective(&data, &exact, 2.0)).abs() < 1e-5);
    for at in (0..exact.len()).step_by(5).chain(exact.len() - 3..exact.len()) {
        let moved = |distance| {
            let mut parameters = exact.clone();
            parameters[at] += distance;
            objective(&data, &parameters, 2.0)
        };
        let difference = (moved(1e-4) - moved(-1e-4)) / 2e-4;
        assert!((difference - f64::from(point.gradient[at])).abs() < 1e-5, "parameter {at}");
    }
}

#[test]
fn result_minimises_the_objective_from_any_start() {
    let set = Set::new(200, 4, 0.3, 6);
    let (samples, l2) = (set.samples(), 0.1);
    let data = Data::new(&samples, usize::MAX);
    let problem = Problem::new(&data, |_| true);
    let gradient = |parameters| norm(&problem.evaluate(parameters, l2).gradient);
    let from_zeros = Linear::fit(&samples, l2, None);
    let from_other = Linear::fit(&samples, l2, Some(&Linear::fit(&samples, 30.0 * l2, None)));
    for linear in [&from_zeros, &from_other] {
        let share = gradient(data.standardised(linear)) / gradient(data.zeros());
        assert!(share < 1e-2, "{share}");
    }
    let pairs =
        logits(&from_zeros, &set.features).into_iter().zip(logits(&from_other, &set.features));
    let differences = pairs.map(|(left, right)| (left - right).abs());
    assert!(differences.fold(0.0, f32::max) < 0.1);
}

#[test]
fn direction_satisfies_the_secant_equation() {
    let mut normal = normals(14);
    let mut correction = || {
        let step: Vec<f32> = (0..20).map(|_| normal()).collect();
        let change: Vec<f32> = step.iter().zip(1..).map(|(x, at)| x * at as f32).collect();
        let product = dot(&step, &change);
        (step, change, product)
    };
    let history: std::collections::VecDeque<_> = (0..4).map(|_| correction()).collect();
    // The newest change of the gradient belongs to the newest step.
    let (step, change, _) = &history[0];
    let direction = lbfgs::descent_direction(change, &history);
    assert!(step.iter().zip(direction).all(|(step, against)| (step + against).abs() < 1e-4));
}

#[test]
fn a_fitted_start_is_kept() {
    let set = Set::new(200, 4, 0.3, 6);
    let fitted = Linear::fit(&set.samples(), 0.1, None);
    let again = Linear::fit(&set.samples(), 0.1, Some(&fitted));
    let pairs = fitted.weights.iter().zip(&again.weights);
    assert!(pairs.map(|(left, right)| (left - right).abs()).fold(0.0, f32::max) < 1e-2);
}

#[test]
fn weak_signal_needs_a_stronger_penalty() {
    let (_, weak) = chosen(&Set::new(150, 3, 0.15, 7).samples(), 1);
    let (_, strong) = chosen(&Set::new(150, 3, 1.5, 7).samples(), 1);
    assert!(weak.l2 > 3.0 * strong.l2, "{} {}", weak.l2, strong.l2);
    assert!(weak.accuracy.is_some_and(|accuracy| (0.3..0.8).contains(&accuracy)));
}

#[test]
fn number_of_threads_does_not_change_a_bit() {
    let set = Set::new(240, 3, 0.5, 8);
    let fitted = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| chosen(&set.samples(), 2))
    };
    assert_eq!(fitted(1), fitted(2));
}

#[test]
fn class_with_one_sample_is_fitted_but_never_held_out() {
    let mut set = Set::new(90, 3, 1.5, 9);
    set.classes = 5;
    set.targets[7] = 3;
    let (linear, penalty) = chosen(&set.samples(), 3);
    assert!(penalty.accuracy.is_some_and(|accuracy| accuracy > 0.9), "{penalty:?}");
    assert_eq!(linear.bias.len(), 5);
    assert!(linear.weights.iter().all(|weight| weight.is_finite()));
    let folds = folds(&[0, 0, 0, 0, 0, 0, 0, 1, 2, 2], 3);
    assert_eq!(folds[7], FOLDS);
    assert_ne!(folds[8], folds[9]);
    assert!((0..FOLDS).all(|fold| (1..=2).contains(&folds.iter().filter(|&&x| x == fold).count())));
}

#[test]
fn too_few_samples_take_the_middle_penalty() {
    let middle = ChosenPenalty { l2: PENALTIES[PENALTIES.len() / 2], accuracy: None };
    let (_, penalty) = chosen(&Set::new(5, 4, 1.5, 10).samples(), 3);
    assert_eq!(penalty, middle);
    let empty = Set { features: Vec::new(), targets: Vec::new(), classes: 4 };
    let (linear, penalty) = chosen(&empty.samples(), 3);
    assert_eq!((penalty.accuracy, linear.bias), (None, vec![0.0; 4]));
}

#[test]
fn choice_is_made_on_a_part_with_all_classes() {
    let set = Set::new(90, 3, 1.0, 11);
    let samples = set.samples();
    let data = Data::new(&samples, 30);
    assert_eq!(data.targets, [vec![0; 10], vec![1; 10], vec![2; 10]].concat());
}

#[test]
fn class_weights_change_the_balance() {
    let set = Set::new(300, 2, 0.1, 12);
    let ones = |weights: &[f32]| {
        let samples = Samples { class_weights: Some(weights), ..set.samples() };
        set.predicted(&Linear::fit(&samples, 5.0, None)).iter().sum::<usize>()
    };
    let (fewer, equal, more) = (ones(&[3.0, 1.0]), ones(&[1.0, 1.0]), ones(&[1.0, 3.0]));
    assert!(fewer + 50 < equal && equal + 50 < more, "{fewer} {equal} {more}");
}

#[test]
fn constant_features_are_ignored() {
    let mut set = Set::new(60, 2, 1.5, 13);
    set.features.chunks_exact_mut(WIDTH).for_each(|row| row[4] = 5.9);
    let linear = Linear::fit(&set.samples(), 0.1, None);
    assert!(linear.weights[8..10].iter().all(|weight| weight.abs() < 1e-3));
    set.features.fill(5.9);
    let linear = Linear::fit(&set.samples(), 0.1, None);
    assert!(logits(&linear, &set.features).iter().all(|logit| logit.abs() < 1e-3));
}
