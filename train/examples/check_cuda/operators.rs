//! Checks of single operators: the same inputs on the CPU and on the GPU.

use std::sync::Arc;

use anyhow::Result;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Device, Layout, Shape, Tensor, Var, backend::BackendDevice};
use macrl_bundle::config::Pooling;
use macrl_bundle::parameters::blocks;
use macrl_kernels::rng::Rng;
use macrl_nn::cuda::{ScalarType, memory};
use macrl_nn::ops::attention::Heads;
use macrl_nn::ops::block::Block;
use macrl_nn::ops::tokens::{self, Kept, Positions, Tokens, VisiblePatches};
use macrl_nn::params::{Group, Init, Layout as Parameters};
use macrl_train::cuda::bank::DeviceBank;
use macrl_train::cuda::flat::Flat;
use macrl_train::ops::contrast::{self, KeyImages, PastKeys};
use macrl_train::ops::info_nce::ContrastSettings;
use macrl_train::ops::reconstruction::{self, Target};

use super::{Checks, distance, noise, rounded, tolerance, values};

type Found = Vec<(String, f64, f64)>;

/// Makes a scalar of a result, so that the result gets a given gradient.
struct Gradient(Tensor);

impl CustomOp1 for Gradient {
    fn name(&self) -> &'static str {
        "gradient"
    }
    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }
    fn cuda_fwd(&self, x: &CudaStorage, _: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        let shape = Shape::from(());
        Ok((x.device.zeros_impl(&shape, candle_core::DType::F32)?, shape))
    }
    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}

/// The same rounded parameters on the CPU and on the GPU.
struct Sides {
    cpu: Vec<Group>,
    gpu: Vec<Group>,
    flat: Flat,
}

impl Sides {
    fn new(device: &Device, scalar: ScalarType, layouts: Vec<Parameters>) -> Result<Self> {
        let mut cpu = Vec::new();
        for (i, layout) in layouts.into_iter().enumerate() {
            let group = Group::init(&layout, i as u64)?;
            // Away from the zeros and ones that biases and norms start with.
            let moved = values(group.values())?;
            let offset = noise(scalar, 1000 + i as u64, moved.len(), 0.05);
            let moved: Vec<f32> = moved.iter().zip(offset).map(|(v, o)| rounded(scalar, v + o)).collect();
            let tensor = Var::from_vec(moved, group.values().elem_count(), &Device::Cpu)?;
            cpu.push(group.placed_on_cpu(tensor.as_tensor().clone()));
        }
        let all: Vec<&Group> = cpu.iter().collect();
        let flat = Flat::new(device, scalar, [&all, &[], &[]], &[])?;
        flat.clear()?;
        let gpu = cpu.iter().enumerate().map(|(i, g)| flat.trainable(i, g)).collect::<candle_core::Result<_>>()?;
        Ok(Sides { cpu, gpu, flat })
    }

    /// Errors of the parameters' gradients, by parameter.
    fn gradients(&self, store: &candle_core::backprop::GradStore, limit: f64) -> Result<Found> {
        let all = values(self.flat.gradient())?;
        let mut found = Vec::new();
        for (i, group) in self.cpu.iter().enumerate() {
            let Some(gradient) = store.get(group.values()) else { anyhow::bail!("the CPU gives no gradient") };
            let (cpu, (start, _)) = (values(gradient)?, self.flat.range(i));
            for p in group.parameters() {
                let gpu = &all[start + p.range.start..start + p.range.end];
                found.push((format!("d {}", p.name), distance(gpu, &cpu[p.range.clone()]), limit));
            }
        }
        Ok(found)
    }
}

fn gpu_tensor(device: &Device, scalar: ScalarType, values: &[f32], shape: impl Into<Shape>) -> Result<Tensor> {
    Ok(memory::upload(device, scalar, values, shape)?)
}

/// A variable on the GPU.
fn gpu_variable(tensor: &Tensor) -> Result<Tensor> {
    Ok(Var::from_tensor(tensor)?.as_tensor().clone())
}

/// Indices of the kept patches (B, K), ascending.
fn kept(images: usize, k: usize, n: usize, seed: u64) -> Vec<u32> {
    let mut rng = Rng::new([seed, 5, 0, 0]);
    (0..images)
        .flat_map(|_| {
            let mut order: Vec<u32> = (0..n as u32).collect();
            (0..k).for_each(|i| order.swap(i, i + rng.bits() as usize % (n - i)));
            order.truncate(k);
            order.sort_unstable();
            order
        })
        .collect()
}

fn kept_on(device: &Device, kept: &[u32], images: usize, n: usize) -> Result<Kept> {
    let k = kept.len() / images;
    let mut sources = vec![u32::MAX; images * (1 + n)];
    for (i, (row, kept)) in sources.chunks_exact_mut(1 + n).zip(kept.chunks_exact(k)).enumerate() {
        row[0] = (i * (1 + k)) as u32;
        kept.iter().enumerate().for_each(|(s, p)| row[1 + *p as usize] = (i * (1 + k) + 1 + s) as u32);
    }
    Ok(Kept::Device {
        kept: Tensor::from_slice(kept, (images, k), device)?,
        sources: Tensor::from_vec(sources, (images, 1 + n), device)?,
    })
}

/// Tokens of two views on both sides, made by an embedding of its own, with its parameters.
struct Embedded {
    sides: Sides,
    cpu: Tokens,
    gpu: Tokens,
    kept: [Vec<u32>; 2],
    images: usize,
    n: usize,
}

/// `images` with K1 and K2 of `n` patches of 12 values, embedded in `width` values.
fn embedded(
    device: &Device,
    scalar: ScalarType,
    images: usize,
    ks: [usize; 2],
    n: usize,
    width: usize,
) -> Result<Embedded> {
    let p = 12;
    let layout = Parameters::new("")
        .with("cls_token", &[1, 1, width], Init::Normal(0.5))
        .with_linear("patch_embed.proj", &[width, p]);
    let sides = Sides::new(device, scalar, vec![layout])?;
    let positions = Positions::new(noise(ScalarType::F32, 9, (1 + n) * width, 0.5), width);
    let (mut cpu, mut gpu, mut all) = (Vec::new(), Vec::new(), Vec::new());
    for (i, k) in ks.into_iter().enumerate() {
        let indices = kept(images, k, n, i as u64);
        let patches = noise(scalar, 20 + i as u64, images * k * p, 1.0);
        cpu.push(VisiblePatches {
            patches: Tensor::from_slice(&patches, (images, k, p), &Device::Cpu)?,
            kept: Kept::Host(Arc::new(indices.clone())),
        });
        gpu.push(VisiblePatches {
            patches: gpu_tensor(device, scalar, &patches, (images, k, p))?,
            kept: kept_on(device, &indices, images, n)?,
        });
        all.push(indices);
    }
    let on =
        |views: &[VisiblePatches], group: &Group| tokens::embed(&views.iter().collect::<Vec<_>>(), group, &positions);
    let (cpu, gpu) = (on(&cpu, &sides.cpu[0])?, on(&gpu, &sides.gpu[0])?);
    Ok(Embedded { sides, cpu, gpu, kept: [all[0].clone(), all[1].clone()], images, n })
}

/// Compares tokens, then sends one random gradient back through both sides and compares all parameters' gradients.
fn through(
    device: &Device,
    scalar: ScalarType,
    limit: f64,
    cpu: &Tokens,
    gpu: &Tokens,
    sides: &[&Sides],
) -> Result<Found> {
    let (cpu_values, gpu_values) = (flat_values(cpu)?, flat_values(gpu)?);
    let mut found = vec![("forward".to_string(), distance(&gpu_values, &cpu_values), limit)];
    let dy = noise(scalar, 40, cpu_values.len(), 1.0);
    let mut at = 0;
    let mut objective: Option<Tensor> = None;
    for part in cpu.parts() {
        let count = part.elem_count();
        let gradient = Tensor::from_slice(&dy[at..at + count], part.shape(), &Device::Cpu)?;
        at += count;
        let term = part.apply_op1(Gradient(gradient))?;
        objective = Some(match objective {
            Some(sum) => (sum + term)?,
            None => term,
        });
    }
    let Some(objective) = objective else { anyhow::bail!("no tokens") };
    let store = objective.backward()?;
    let whole = &gpu.parts()[0];
    whole.apply_op1(Gradient(gpu_tensor(device, scalar, &dy, whole.shape())?))?.backward()?;
    for sides in sides {
        found.extend(sides.gradients(&store, 2.0 * limit)?);
    }
    Ok(found)
}

fn flat_values(tokens: &Tokens) -> Result<Vec<f32>> {
    tokens.parts().iter().map(values).collect::<Result<Vec<_>>>().map(|parts| parts.concat())
}

/// Checks all operators in one precision.
pub(crate) fn all(checks: &mut Checks, scalar: ScalarType) {
    let limit = tolerance(scalar);
    let named = |name: &str| format!("{name} {scalar:?}");
    checks.run(&named("embed"), |device| {
        let e = embedded(device, scalar, 3, [4, 11], 16, 24)?;
        through(device, scalar, limit, &e.cpu, &e.gpu, &[&e.sides])
    });
    for width in [24, 192, 260, 384, 768] {
        checks.run(&named(&format!("norm of {width}")), |device| {
            let e = embedded(device, scalar, 3, [4, 11], 16, width)?;
            let norm = Sides::new(device, scalar, vec![Parameters::new("").with_norm("norm", width)])?;
            let (cpu, gpu) = (e.cpu.norm(&norm.cpu[0])?, e.gpu.norm(&norm.gpu[0])?);
            through(device, scalar, limit, &cpu, &gpu, &[&norm, &e.sides])
        });
    }
    // Enough rows that sums over blocks need several passes.
    for width in [24, 260] {
        checks.run(&named(&format!("norm of {width}, many rows")), |device| {
            let e = embedded(device, scalar, 64, [4, 11], 16, width)?;
            let norm = Sides::new(device, scalar, vec![Parameters::new("").with_norm("norm", width)])?;
            let (cpu, gpu) = (e.cpu.norm(&norm.cpu[0])?, e.gpu.norm(&norm.gpu[0])?);
            through(device, scalar, limit, &cpu, &gpu, &[&norm, &e.sides])
        });
    }
    // (tokens of both views, heads, head width): plain and matrix attention, one tile and several.
    for (ks, heads, d) in [
        ([4, 11], 3, 8),
        // Biases that a product's epilogue does not accept in bfloat16.
        ([4, 11], 5, 4),
        ([16, 48], 3, 64),
        ([32, 79], 1, 64),
        ([16, 48], 3, 32),
        ([64, 64], 2, 32),
        ([1, 31], 2, 64),
        ([64, 192], 1, 64),
        ([150, 256], 1, 32),
    ] {
        let name = format!("block of {heads} x {d}, {} and {} tokens", ks[0] + 1, ks[1] + 1);
        checks.run(&named(&name), |device| {
            let (width, n) = (heads * d, 256.max(ks[1]));
            let e = embedded(device, scalar, 2, ks, n, width)?;
            let blocks = Sides::new(device, scalar, blocks("blocks", 2, width, 2 * width))?;
            let shape = |tokens| Block { at: Heads { tokens, heads, width }, hidden: 2 * width };
            let (cpu, gpu) = (e.cpu.blocks(&blocks.cpu, shape)?, e.gpu.blocks(&blocks.gpu, shape)?);
            through(device, scalar, 2.0 * limit, &cpu, &gpu, &[&blocks, &e.sides])
        });
    }
    checks.run(&named("fill"), |device| {
        let e = embedded(device, scalar, 3, [4, 11], 16, 24)?;
        let layout = Parameters::new("").with_linear("decoder_embed", &[20, 24]).with(
            "mask_token",
            &[1, 1, 20],
            Init::Normal(0.5),
        );
        let fill = Sides::new(device, scalar, vec![layout])?;
        let positions = Positions::new(noise(ScalarType::F32, 8, 17 * 20, 0.5), 20);
        let host: Vec<Kept> = e.kept.iter().map(|k| Kept::Host(Arc::new(k.clone()))).collect();
        let there = e.kept.iter().map(|k| kept_on(device, k, e.images, e.n)).collect::<Result<Vec<_>>>()?;
        let cpu = e.cpu.fill(&fill.cpu[0], &host.iter().collect::<Vec<_>>(), &positions)?;
        let gpu = e.gpu.fill(&fill.gpu[0], &there.iter().collect::<Vec<_>>(), &positions)?;
        through(device, scalar, limit, &cpu, &gpu, &[&fill, &e.sides])
    });
    checks.run(&named("l1"), |device| l1(device, scalar, limit));
    for (outputs, gelu) in [(36, true), (36, false), (27, false)] {
        checks.run(&named(&format!("linear to {outputs}, gelu {gelu}")), |device| {
            pooled(
                device,
                scalar,
                limit,
                |x, sides, on_gpu| tokens::linear(x, if on_gpu { &sides.gpu[0] } else { &sides.cpu[0] }, outputs, gelu),
                Some(Parameters::new("").with_linear("linear", &[outputs, 24])),
            )
        });
    }
    checks.run(&named("l2"), |device| pooled(device, scalar, limit, |x, _, _| tokens::l2_normalize(x), None));
    checks.run(&named("contrast"), |device| contrast(device, scalar, limit));
}

/// An operator on pooled vectors, both ways of pooling, both views.
fn pooled(
    device: &Device,
    scalar: ScalarType,
    limit: f64,
    operator: impl Fn(&Tensor, &Sides, bool) -> candle_core::Result<Tensor>,
    layout: Option<Parameters>,
) -> Result<Found> {
    let mut found = Vec::new();
    let used = layout.is_some();
    let layout = layout.unwrap_or_else(|| Parameters::new("").with_norm("unused", 4));
    let sides = Sides::new(device, scalar, vec![layout])?;
    for (which, pooling) in [(0, Pooling::Mean), (1, Pooling::Cls)] {
        sides.flat.clear()?;
        let e = embedded(device, scalar, 3, [4, 11], 16, 24)?;
        let cpu = operator(&e.cpu.pool(which, pooling)?, &sides, false)?;
        let gpu = operator(&e.gpu.pool(which, pooling)?, &sides, true)?;
        found.push(("forward".into(), distance(&values(&gpu)?, &values(&cpu)?), limit));
        let dy = noise(scalar, 41, cpu.elem_count(), 1.0);
        let store = cpu.apply_op1(Gradient(Tensor::from_slice(&dy, cpu.shape(), &Device::Cpu)?))?.backward()?;
        gpu.apply_op1(Gradient(gpu_tensor(device, scalar, &dy, gpu.shape())?))?.backward()?;
        found.extend(e.sides.gradients(&store, 3.0 * limit)?);
        if used {
            found.extend(sides.gradients(&store, 2.0 * limit)?);
        }
    }
    Ok(found)
}

fn l1(device: &Device, scalar: ScalarType, limit: f64) -> Result<Found> {
    let mut found = Vec::new();
    for removed_only in [true, false] {
        let e = embedded(device, scalar, 3, [16, 16], 16, 24)?;
        let indices = [kept(3, 4, 16, 3), kept(3, 11, 16, 4)];
        let targets = [noise(ScalarType::F32, 60, 3 * 16 * 24, 1.0), noise(ScalarType::F32, 61, 3 * 16 * 24, 1.0)];
        let host: Vec<(Target, Kept)> = targets
            .iter()
            .zip(&indices)
            .map(|(t, k)| (Target::Host(Arc::new(t.clone())), Kept::Host(Arc::new(k.clone()))))
            .collect();
        let there = targets
            .iter()
            .zip(&indices)
            .map(|(t, k)| {
                let target = Target::Device(Tensor::from_slice(t, (3, 16, 24), device)?);
                Ok((target, kept_on(device, k, 3, 16)?))
            })
            .collect::<Result<Vec<_>>>()?;
        let pairs = |list: &[(Target, Kept)]| list.iter().map(|(t, k)| (t.clone(), k.clone())).collect::<Vec<_>>();
        let (host, there) = (pairs(&host), pairs(&there));
        fn borrowed(list: &[(Target, Kept)]) -> Vec<(&Target, &Kept)> {
            list.iter().map(|(t, k)| (t, k)).collect()
        }
        let (cpu, cpu_parts) = reconstruction::l1(&e.cpu, &borrowed(&host), removed_only, 0.7)?;
        let (gpu, gpu_parts) = reconstruction::l1(&e.gpu, &borrowed(&there), removed_only, 0.7)?;
        found.push(("loss".into(), distance(&values(&gpu)?, &values(&cpu)?), limit));
        found.push(("of each view".into(), distance(&values(&gpu_parts)?, &values(&cpu_parts)?), limit));
        let store = cpu.backward()?;
        gpu.backward()?;
        // Signs flip where a rounded prediction passes its target.
        let limit = 10.0 * limit;
        found.extend(e.sides.gradients(&store, limit)?);
    }
    Ok(found)
}

fn contrast(device: &Device, scalar: ScalarType, limit: f64) -> Result<Found> {
    let (b, c, m, filled) = (12, 16, 20, 13);
    let unit = |seed: u64, rows: usize| -> Vec<f32> {
        let raw = noise(ScalarType::F32, seed, rows * c, 1.0);
        let scaled = raw.chunks(c).flat_map(|row| {
            let length = row.iter().map(|v| v * v).sum::<f32>().sqrt();
            row.iter().map(|v| rounded(scalar, v / length)).collect::<Vec<_>>()
        });
        scaled.collect()
    };
    let (q, k, bank) = (unit(1, b), unit(2, b), unit(3, filled));
    let images: Vec<u32> = (0..b as u32).map(|i| i / 2).collect(); // two views' images agree
    let bank_images: Vec<u32> = (0..filled as u32).map(|i| i / 3).collect();
    let mut whole = bank.clone();
    whole.resize(m * c, 0.0);
    let mut whole_images = bank_images.clone();
    whole_images.resize(m, u32::MAX);
    let there = DeviceBank {
        keys: gpu_tensor(device, scalar, &whole, (m, c))?,
        images: Tensor::from_vec(whole_images, m, device)?,
    };
    let mut found = Vec::new();
    for batch_negatives in [true, false] {
        let settings = ContrastSettings { temperature: 0.2, batch_negatives, weight: 0.3 };
        let q_cpu = Var::from_slice(&q, (b, c), &Device::Cpu)?.as_tensor().clone();
        let k_cpu = Tensor::from_slice(&k, (b, c), &Device::Cpu)?;
        let (cpu, cpu_parts) = contrast::contrast(
            &q_cpu,
            &k_cpu,
            &KeyImages::Host(images.clone()),
            PastKeys::Host(&bank, &bank_images),
            settings,
        )?;
        let q_gpu = gpu_variable(&gpu_tensor(device, scalar, &q, (b, c))?)?;
        let k_gpu = gpu_tensor(device, scalar, &k, (b, c))?;
        let on = KeyImages::Device(Tensor::from_slice(&images, b, device)?);
        let (gpu, gpu_parts) = contrast::contrast(&q_gpu, &k_gpu, &on, PastKeys::Device(&there), settings)?;
        found.push(("loss".into(), distance(&values(&gpu)?, &values(&cpu)?), limit));
        found.push(("its other numbers".into(), distance(&values(&gpu_parts)?, &values(&cpu_parts)?), limit));
        let (cpu, gpu) = (cpu.backward()?, gpu.backward()?);
        let (Some(cpu), Some(gpu)) = (cpu.get(&q_cpu), gpu.get(&q_gpu)) else { anyhow::bail!("no gradient") };
        found.push(("d queries".into(), distance(&values(gpu)?, &values(cpu)?), 2.0 * limit));
    }
    Ok(found)
}
