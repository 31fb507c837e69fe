//! Single layers in int8 beside f32 on this processor, on one thread.
//!
//! Run with `cargo run --release --example int8` on a machine that does nothing else. Each layer is
//! timed in f32 and in int8 in turns, with AVX-512 (and VNNI) and with AVX2, and medians are shown.
//! In int8 a layer takes and gives bytes: scaling, bias, ReLU and rounding are part of its time.
//! "near" means that its weights still lie in the cache from the run before, "far" that they come
//! from where those of a whole network lie. All results are compared with the definition first.
#![allow(unsafe_code, reason = "pulp has no products of bytes, and bounds checks halve the speed")]

fn main() {
    #[cfg(target_arch = "x86_64")]
    x86_64::main();
    #[cfg(not(target_arch = "x86_64"))]
    println!("nothing to measure: the kernels are written for x86_64 only");
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::x86_64::*;
    use std::hint::black_box;
    use std::time::Instant;

    /// Samples of each kernel for a layer.
    const ROUNDS: usize = 101;
    /// Seconds that a sample takes about, so that the clock's own time does not count.
    const SAMPLE: f64 = 3e-4;
    /// Bytes of f32 weights that far layers take turns with: those of EfficientNet-Lite0.
    const NETWORK: usize = 18 << 20;
    /// Sums that depend on none of the others, and how often they grow, for the highest rate.
    const CHAINS: usize = 12;
    const GROWTH: usize = 10_000;
    /// The byte that stands for zero in a layer's input: whichever it is, the speed is the same.
    const ZERO: u8 = 117;

    /// A convolution of stride 1 that keeps the map's size.
    #[derive(Clone, Copy)]
    struct Layer {
        /// Height and width.
        size: [usize; 2],
        /// Of the input and of the output.
        channels: [usize; 2],
        kernel: usize,
        relu: bool,
    }

    /// A kernel of one pixel takes all pixels as one row, as none needs its neighbours.
    const LAYERS: [Layer; 6] = [
        Layer { size: [1, 100], channels: [112, 672], kernel: 1, relu: true },
        Layer { size: [1, 100], channels: [672, 112], kernel: 1, relu: false },
        Layer { size: [1, 25], channels: [192, 1152], kernel: 1, relu: true },
        Layer { size: [1, 25], channels: [1152, 192], kernel: 1, relu: false },
        Layer { size: [20, 20], channels: [96, 96], kernel: 3, relu: true },
        Layer { size: [10, 10], channels: [192, 192], kernel: 3, relu: true },
    ];

    impl Layer {
        /// Products for one value of the output.
        fn depth(self) -> usize {
            self.kernel * self.kernel * self.channels[0]
        }

        /// Values from a row of the input to the next, with the border.
        fn pitch(self) -> usize {
            (self.size[1] + self.kernel - 1) * self.channels[0]
        }
    }

    /// A layer with its numbers, which f32 and int8 have in common.
    struct Problem {
        layer: Layer,
        /// The input, `[height, width, inputs]` with a border that stands for zero.
        map: Vec<u8>,
        /// `[outputs, kernel, kernel, inputs]`.
        weights: Vec<i8>,
        /// Factor of each channel's sums, and offset added to the product.
        after: Vec<[f64; 2]>,
    }

    impl Problem {
        /// Weights are from `-limit` to `limit`.
        fn new(layer @ Layer { size, channels, kernel, .. }: Layer, limit: i64) -> Self {
            let mut state = 1_u64;
            let mut random = |below: i64| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 33) as i64 % below
            };
            let mut map = vec![ZERO; (size[0] + kernel - 1) * layer.pitch()];
            for row in map.chunks_exact_mut(layer.pitch()).skip(kernel / 2).take(size[0]) {
                let inside = kernel / 2 * channels[0]..(kernel / 2 + size[1]) * channels[0];
                row[inside].fill_with(|| random(256) as u8);
            }
            let mut weights = vec![0; channels[1] * layer.depth()];
            weights.fill_with(|| (random(2 * limit + 1) - limit) as i8);
            // Most values of the output fit a byte then, but not all of them.
            let scale = 0.5 / (limit as f64 * (layer.depth() as f64).sqrt());
            let after = |output| [scale * (1 + output % 3) as f64, (output % 50) as f64];
            Self { layer, map, weights, after: (0..channels[1]).map(after).collect() }
        }

        /// One value of the output by the definition of a convolution.
        fn expected(&self, place: usize) -> f64 {
            let Layer { size: [_, width], channels: [inputs, outputs], kernel, relu } = self.layer;
            let (pixel, output) = (place / outputs, place % outputs);
            let first = pixel / width * self.layer.pitch() + pixel % width * inputs;
            let depth = self.layer.depth();
            let lines = self.weights[output * depth..][..depth].chunks_exact(kernel * inputs);
            let products = lines.enumerate().flat_map(|(line, weights)| {
                let pairs = self.map[first + line * self.layer.pitch()..].iter().zip(weights);
                pairs.map(|(&x, &weight)| (i64::from(x) - i64::from(ZERO)) * i64::from(weight))
            });
            let [scale, bias] = self.after[output];
            let value = products.sum::<i64>() as f64 * scale + bias;
            if relu { value.max(0.0) } else { value }
        }

        fn in_f32<K: Kernel<Value = f32>>(&self, copies: usize) -> Prepared<K> {
            let value = |byte| f32::from(byte) - f32::from(ZERO);
            let weight = |weight, output: usize| (f64::from(weight) * self.after[output][0]) as f32;
            let after = |output: usize, _: &[i8]| [1.0, self.after[output][1] as f32];
            let floor = if self.layer.relu { 0.0 } else { f32::NEG_INFINITY };
            let prepared = Prepared::new(self, copies, floor, (value, weight, after));
            for (place, &out) in prepared.out.iter().enumerate() {
                assert!((f64::from(out) - self.expected(place)).abs() < 1e-3);
            }
            prepared
        }

        fn in_bytes<K: Kernel<Value = u8>>(&self, copies: usize) -> Prepared<K> {
            // The byte that stands for zero in the output.
            let zero = if self.layer.relu { 0.0 } else { f64::from(ZERO) };
            let after = |output: usize, weights: &[i8]| {
                let [scale, bias] = self.after[output];
                // The bytes are multiplied as they are, so that each sum is too large by this.
                let excess = f64::from(ZERO) * weights.iter().copied().map(f64::from).sum::<f64>();
                [scale as f32, (bias + zero - excess * scale) as f32]
            };
            let functions = (|byte| byte, |weight: i8, _| weight.cast_unsigned(), after);
            let prepared = Prepared::new(self, copies, 0.0, functions);
            for (place, &out) in prepared.out.iter().enumerate() {
                let exact = (self.expected(place) + zero).clamp(0.0, 255.0);
                // Rounding loses half a step, and a little more where sums in f32 are inexact.
                assert!((f64::from(out) - exact).abs() < 0.5 + 1e-3);
            }
            prepared
        }
    }

    /// The input of some pixels of a layer, and the weights of some of its channels.
    struct Tile<'a, K: Kernel> {
        layer: Layer,
        map: &'a [K::Value],
        weights: &'a [K::Value],
        after: [&'a [f32]; 2],
        floor: f32,
        out: &'a mut [K::Value],
    }

    /// A way to multiply, whose unsafe functions may only be called where it is supported.
    trait Kernel: Sized {
        /// Of maps and of weights, whose signed bytes are kept as unsigned ones.
        type Value: Copy + Default;
        /// Inputs that an instruction multiplies and adds for each sum.
        const GROUP: usize;
        /// Sums of a vector.
        const LANES: usize;
        /// Rows and vectors of the largest tile, whose sums must fit the registers.
        const TILE: [usize; 2];
        fn supported() -> bool;
        /// Computes `R` pixels by `V` vectors of channels.
        unsafe fn tile<const R: usize, const V: usize>(tile: Tile<'_, Self>);
        /// Adds products to all `CHAINS`, `GROWTH` times, without any memory.
        unsafe fn peak();
    }

    /// Implements [`Kernel`] with expressions that load a vector of weights, fill a vector with a
    /// pixel's next inputs, add their products to sums, and write a vector of the output.
    macro_rules! kernel {
        ($name:ident: $value:ty, $vector:ty, [$group:expr, $lanes:expr, $tile:expr],
         [$($feature:tt)+], |$weights:ident| $load:expr, |$x:ident| $fill:expr,
         |$sum:ident, $values:ident, $loaded:ident| $add:expr,
         |$total:ident, $scale:ident, $offset:ident, $floor:ident, $out:ident| $write:expr) => {
            struct $name;
            impl Kernel for $name {
                type Value = $value;
                const GROUP: usize = $group;
                const LANES: usize = $lanes;
                const TILE: [usize; 2] = $tile;

                fn supported() -> bool {
                    $(is_x86_feature_detected!($feature))&&+
                }

                $(#[target_feature(enable = $feature)])+
                unsafe fn tile<const R: usize, const V: usize>(tile: Tile<'_, Self>) {
                    let Layer { channels: [inputs, outputs], kernel, .. } = tile.layer;
                    let (pitch, run, end) = (tile.layer.pitch(), kernel * inputs, V * $lanes);
                    assert!(tile.map.len() >= (kernel - 1) * pitch + (R - 1) * inputs + run);
                    assert!(tile.weights.len() >= kernel * run * end && run.is_multiple_of($group));
                    assert!(tile.out.len() >= (R - 1) * outputs + end);
                    assert!(tile.after.iter().all(|values| values.len() >= end));
                    // SAFETY: zeros are a vector, and all places are below the lengths asserted.
                    unsafe {
                        let mut sums: [[$vector; V]; R] = std::mem::zeroed();
                        let mut $weights = tile.weights.as_ptr();
                        for y in 0..kernel {
                            for place in (y * pitch..y * pitch + run).step_by($group) {
                                let mut vectors: [$vector; V] = std::mem::zeroed();
                                for vector in &mut vectors {
                                    *vector = $load;
                                    $weights = $weights.add($lanes * $group);
                                }
                                for (row, sums) in sums.iter_mut().enumerate() {
                                    let $x = tile.map.as_ptr().add(place + row * inputs);
                                    let $values = $fill;
                                    for ($sum, &$loaded) in sums.iter_mut().zip(&vectors) {
                                        *$sum = $add;
                                    }
                                }
                            }
                        }
                        let $floor = tile.floor;
                        for (row, sums) in sums.into_iter().enumerate() {
                            for (vector, $total) in sums.into_iter().enumerate() {
                                let channel = vector * $lanes;
                                let [$scale, $offset] = tile.after.map(|v| v[channel..].as_ptr());
                                let $out = tile.out.as_mut_ptr().add(row * outputs + channel);
                                $write;
                            }
                        }
                    }
                }

                $(#[target_feature(enable = $feature)])+
                unsafe fn peak() {
                    // SAFETY: zeros are vectors.
                    let ($loaded, mut sums): ($vector, [$vector; CHAINS]) =
                        black_box(unsafe { std::mem::zeroed() });
                    for _ in 0..GROWTH {
                        for $sum in &mut sums {
                            // If it did not change, it would be multiplied before the loop.
                            let $values = *$sum;
                            *$sum = $add;
                        }
                    }
                    black_box(sums);
                }
            }
        };
    }

    kernel!(
        F32Avx512: f32, __m512, [1, 16, [8, 3]], ["avx512f"],
        |weights| _mm512_loadu_ps(weights),
        |x| _mm512_set1_ps(*x),
        |sum, values, weights| _mm512_fmadd_ps(values, weights, *sum),
        |sum, _scale, offset, floor, out| {
            let sum = _mm512_add_ps(sum, _mm512_loadu_ps(offset));
            _mm512_storeu_ps(out, _mm512_max_ps(sum, _mm512_set1_ps(floor)))
        }
    );

    kernel!(
        Int8Avx512: u8, __m512i, [4, 16, [8, 3]], ["avx512f" "avx512vnni"],
        |weights| _mm512_loadu_si512(weights.cast()),
        |x| _mm512_set1_epi32(x.cast::<i32>().read_unaligned()),
        |sum, values, weights| _mm512_dpbusd_epi32(*sum, values, weights),
        |sum, scale, offset, floor, out| {
            let (scale, offset) = (_mm512_loadu_ps(scale), _mm512_loadu_ps(offset));
            let sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, offset);
            let sum = _mm512_cvtps_epi32(_mm512_max_ps(sum, _mm512_set1_ps(floor)));
            // As the floor is not negative, the sums may be taken for unsigned ones.
            _mm_storeu_si128(out.cast(), _mm512_cvtusepi32_epi8(sum));
        }
    );

    kernel!(
        F32Avx2: f32, __m256, [1, 8, [6, 2]], ["avx2" "fma"],
        |weights| _mm256_loadu_ps(weights),
        |x| _mm256_set1_ps(*x),
        |sum, values, weights| _mm256_fmadd_ps(values, weights, *sum),
        |sum, _scale, offset, floor, out| {
            let sum = _mm256_add_ps(sum, _mm256_loadu_ps(offset));
            _mm256_storeu_ps(out, _mm256_max_ps(sum, _mm256_set1_ps(floor)))
        }
    );

    kernel!(
        Int8Avx2: u8, __m256i, [4, 8, [6, 2]], ["avx2" "fma"],
        |weights| _mm256_loadu_si256(weights.cast()),
        |x| _mm256_set1_epi32(x.cast::<i32>().read_unaligned()),
        |sum, values, weights| {
            // Two products with weights of 7 bits fit 16 bits; with 8 bits they would not.
            let pairs = _mm256_maddubs_epi16(values, weights);
            _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        },
        |sum, scale, offset, floor, out| {
            let (scale, offset) = (_mm256_loadu_ps(scale), _mm256_loadu_ps(offset));
            let sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, offset);
            let sum = _mm256_cvtps_epi32(_mm256_max_ps(sum, _mm256_set1_ps(floor)));
            let (low, high) = (_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
            let words = _mm_packus_epi32(low, high);
            _mm_storel_epi64(out.cast(), _mm_packus_epi16(words, words));
        }
    );

    /// First vector and number of vectors of blocks as even as can be.
    fn blocks<K: Kernel>(outputs: usize) -> impl Iterator<Item = (usize, usize)> {
        let vectors = outputs / K::LANES;
        let count = vectors.div_ceil(K::TILE[1]);
        (0..count).map(move |block| {
            let first = block * vectors / count;
            (first, (block + 1) * vectors / count - first)
        })
    }

    /// A layer ready to run.
    struct Prepared<K: Kernel> {
        layer: Layer,
        map: Vec<K::Value>,
        /// The same ones several times, each in blocks `[depth / group, channels, group]`.
        weights: Vec<Vec<K::Value>>,
        /// Epilogue of a channel's sums: `max(sum * scale + offset, floor)`.
        scale: Vec<f32>,
        offset: Vec<f32>,
        floor: f32,
        out: Vec<K::Value>,
    }

    impl<K: Kernel> Prepared<K> {
        /// The functions give values of the input, weights, and a channel's scale and offset; the
        /// layer has run once then.
        fn new<A: Fn(usize, &[i8]) -> [f32; 2]>(
            Problem { layer, map, weights: values, .. }: &Problem,
            copies: usize,
            floor: f32,
            (value, weight, after): (impl Fn(u8) -> K::Value, impl Fn(i8, usize) -> K::Value, A),
        ) -> Self {
            let mut weights = Vec::new();
            for (first, width) in blocks::<K>(layer.channels[1]) {
                for start in (0..layer.depth()).step_by(K::GROUP) {
                    for output in first * K::LANES..(first + width) * K::LANES {
                        let group = &values[output * layer.depth() + start..][..K::GROUP];
                        weights.extend(group.iter().map(|&value| weight(value, output)));
                    }
                }
            }
            let channels = values.chunks_exact(layer.depth()).enumerate();
            let (scale, offset) = channels.map(|(output, all)| after(output, all).into()).unzip();
            let map = map.iter().map(|&byte| value(byte)).collect();
            let places = layer.size.iter().product::<usize>() * layer.channels[1];
            let (weights, out) = (vec![weights; copies], vec![K::Value::default(); places]);
            let mut prepared = Self { layer: *layer, map, weights, scale, offset, floor, out };
            prepared.run(0);
            prepared
        }

        /// With the weights of that copy.
        fn run(&mut self, copy: usize) {
            assert!(K::supported());
            let (layer, mut start) = (self.layer, 0);
            let Layer { size: [height, width], channels: [inputs, outputs], .. } = layer;
            for (first, vectors) in blocks::<K>(outputs) {
                let (weights, channel) = (&self.weights[copy][start..], first * K::LANES);
                start += layer.depth() * vectors * K::LANES;
                let after = [&self.scale[channel..], &self.offset[channel..]];
                for y in 0..height {
                    for x in (0..width).step_by(K::TILE[0]) {
                        let map = &self.map[y * layer.pitch() + x * inputs..];
                        let out = &mut self.out[(y * width + x) * outputs + channel..];
                        let tile = Tile { layer, map, weights, after, floor: self.floor, out };
                        // SAFETY: it is supported.
                        unsafe {
                            match [K::TILE[0].min(width - x), vectors] {
                                [8, 3] => K::tile::<8, 3>(tile),
                                [4, 3] => K::tile::<4, 3>(tile),
                                [2, 3] => K::tile::<2, 3>(tile),
                                [1, 3] => K::tile::<1, 3>(tile),
                                [8, 2] => K::tile::<8, 2>(tile),
                                [6, 2] => K::tile::<6, 2>(tile),
                                [4, 2] => K::tile::<4, 2>(tile),
                                [2, 2] => K::tile::<2, 2>(tile),
                                [1, 2] => K::tile::<1, 2>(tile),
                                _ => unreachable!("no layer has such tiles"),
                            }
                        }
                    }
                }
            }
        }
    }

    fn seconds(work: impl FnOnce()) -> f64 {
        let began = Instant::now();
        work();
        began.elapsed().as_secs_f64()
    }

    fn median(mut values: Vec<f64>) -> f64 {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    }

    /// Billions of operations a second of the instructions alone.
    fn peak<K: Kernel>() -> f64 {
        assert!(K::supported());
        // SAFETY: it is supported.
        let samples = (0..ROUNDS).map(|_| seconds(|| unsafe { K::peak() })).collect();
        (2 * K::GROUP * K::LANES * CHAINS * GROWTH) as f64 / median(samples) * 1e-9
    }

    /// Median seconds of a run of each, sampled in turns.
    fn compare<A: Kernel, B: Kernel>(mut a: Prepared<A>, mut b: Prepared<B>) -> [f64; 2] {
        let runs = (SAMPLE / seconds(|| a.run(0))).ceil() as usize;
        let mut samples = [Vec::new(), Vec::new()];
        for round in 0..ROUNDS {
            let (runs, copies) = (round * runs..(round + 1) * runs, a.weights.len());
            samples[0].push(seconds(|| runs.clone().for_each(|run| a.run(run % copies))));
            samples[1].push(seconds(|| runs.clone().for_each(|run| b.run(run % copies))));
        }
        samples.map(|samples| median(samples) / runs as f64)
    }

    fn report<A: Kernel<Value = f32>, B: Kernel<Value = u8>>(name: &str, limit: i64) {
        let (most_f32, most_int8) = (peak::<A>(), peak::<B>());
        println!("{name}: at most {most_f32:.0} GFLOP/s in f32, {most_int8:.0} GOP/s in int8");
        println!("map and channels, side   weights   f32 us GFLOP/s  int8 us   GOP/s  f32/int8");
        for layer @ Layer { size, channels, kernel, .. } in LAYERS {
            let problem = Problem::new(layer, limit);
            let far = NETWORK / (problem.weights.len() * size_of::<f32>());
            for (place, copies) in [("near", 1), ("far", far)] {
                let times = compare(problem.in_f32::<A>(copies), problem.in_bytes::<B>(copies));
                let products = problem.weights.len() * layer.size.iter().product::<usize>();
                let [rate, rate_int8] = times.map(|time| 2e-9 * products as f64 / time);
                let [f32s, bytes] = times.map(|time| time * 1e6);
                print!("{size:3?} {channels:4?} {kernel} {place:7} {f32s:8.1} {rate:7.1}");
                println!(" {bytes:8.1} {rate_int8:7.1} {:9.2}", f32s / bytes);
            }
        }
    }

    pub(super) fn main() {
        if Int8Avx512::supported() {
            report::<F32Avx512, Int8Avx512>("AVX-512 with VNNI", 127);
        }
        if F32Avx2::supported() {
            report::<F32Avx2, Int8Avx2>("AVX2, weights of 7 bits", 63);
        }
    }
}
