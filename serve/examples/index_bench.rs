//! What the index can do, without HTTP around it.
//!
//! `index_bench N D [VECTORS QUERIES]`: N vectors of D numbers, in clouds as those of images are, or from a file of f32;
//! prints filling, opening, memory, queries/s one at a time and together, exact and approximate, recall@10 and p99.
//! `RAYON_NUM_THREADS=1` shows one thread; `INDEX=postgres://…` measures an empty database there (bench/postgres.sh).

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use macrl_serve::index::{
    EmbeddedIndex, EncoderIdentity, Filter, Hit, Index, Item, JsonMap, Location, OpenOptions, PostgresIndex, Query,
};
use macrl_serve::metrics::resident_bytes;
use tokio::runtime::Runtime;

/// For each figure.
const SPAN: Duration = Duration::from_secs(3);

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let usage = "usage: index_bench N D [VECTORS QUERIES]";
    let (n, dim) = (args.first().context(usage)?.parse()?, args.get(1).context(usage)?.parse()?);
    let (vectors, queries) = match args.get(2..4) {
        Some([vectors, queries]) => (read(vectors, dim)?, read(queries, dim)?),
        _ => {
            let all = clouds(n + 1000, dim);
            (all[..n].to_vec(), all[n..].to_vec())
        }
    };
    ensure!(vectors.len() == n, "expected {n} vectors, found {}", vectors.len());
    let folder = std::env::temp_dir().join(format!("index-bench-{}", std::process::id()));
    let location = match std::env::var("INDEX") {
        Ok(address) => address.parse().map_err(anyhow::Error::msg)?,
        Err(_) => Location::Folder(folder.clone()),
    };
    let result = Runtime::new().map_err(Into::into).and_then(|runtime| measure(&location, vectors, &queries, &runtime));
    let _ = std::fs::remove_dir_all(&folder);
    result
}

/// An index that is being measured.
enum Opened<'a> {
    /// Searched on the calling thread.
    Embedded(EmbeddedIndex),
    Postgres(PostgresIndex, &'a Runtime),
}

impl<'a> Opened<'a> {
    fn new(
        location: &Location,
        encoder: &EncoderIdentity,
        options: &OpenOptions,
        runtime: &'a Runtime,
    ) -> Result<Self> {
        let folder = |dir: &PathBuf| Ok(Self::Embedded(EmbeddedIndex::open(dir, encoder, options)?));
        match location {
            Location::Memory => folder(&std::env::temp_dir()),
            Location::Folder(dir) => folder(dir),
            Location::Postgres(address) => Ok(Self::Postgres(PostgresIndex::open(address, encoder, options)?, runtime)),
        }
    }

    fn index(&self) -> &dyn Index {
        match self {
            Self::Embedded(index) => index,
            Self::Postgres(index, _) => index,
        }
    }

    fn search(&self, queries: &[Vec<f32>], exact: bool) -> Result<Vec<Vec<Hit>>> {
        let query =
            |vector: &Vec<f32>| Query { vector: vector.clone(), k: 10, filter: Filter::default(), exact, except: None };
        let queries = queries.iter().map(query).collect();
        Ok(match self {
            Self::Embedded(index) => index.search_blocking(queries)?,
            Self::Postgres(index, runtime) => runtime.block_on(index.search(queries))?,
        })
    }
}

fn measure(location: &Location, vectors: Vec<Vec<f32>>, queries: &[Vec<f32>], runtime: &Runtime) -> Result<()> {
    let (n, dim) = (vectors.len(), vectors[0].len());
    let encoder = EncoderIdentity { sha256: "bench".into(), dim };
    let exact_up_to = std::env::var("EXACT_UP_TO").ok().and_then(|v| v.parse().ok()).unwrap_or(50_000);
    let options = OpenOptions { max_bytes: usize::MAX, exact_up_to, ..OpenOptions::default() };
    let open = |exact_up_to| Opened::new(location, &encoder, &OpenOptions { exact_up_to, ..options.clone() }, runtime);
    let since = Instant::now();
    let opened = open(usize::MAX)?;
    let index = opened.index();
    ensure!(runtime.block_on(index.status())?.items == 0, "the index has items already");
    for (i, block) in vectors.chunks(1000).enumerate() {
        let item = |(j, vector): (usize, &Vec<f32>)| item(i * 1000 + j, vector);
        runtime.block_on(index.put(&encoder, block.iter().enumerate().map(item).collect()))?;
    }
    let seconds = since.elapsed().as_secs_f64();
    println!("filled durably, 1000 a commit      {:>9.0} items/s", n as f64 / seconds);
    println!(
        "filled durably, 64 callers, 1 each {:>9.0} items/s",
        runtime.block_on(writers(index, &encoder, &vectors))?
    );
    drop(vectors);
    let exact: Vec<Vec<Hit>> = queries.chunks(64).map(|q| opened.search(q, true)).collect::<Result<Vec<_>>>()?.concat();
    println!(
        "exact, one at a time               {:>9.0} queries/s",
        rate(|i| opened.search(&queries[i..=i], true), queries.len())?
    );
    let together = 64.min(queries.len());
    println!(
        "exact, {together} together                  {:>9.0} queries/s",
        together as f64 * rate(|_| opened.search(&queries[..together], true), 1)?
    );
    drop(opened);
    let since = Instant::now();
    let opened = open(exact_up_to)?;
    println!("opened in                          {:>9.2} s", since.elapsed().as_secs_f64());
    println!(
        "resident                           {:>9.0} MiB (vectors alone {:.0})",
        mib(),
        (4 * n * dim) as f64 / f64::from(1 << 20)
    );
    if n <= exact_up_to {
        return Ok(());
    }
    let since = Instant::now();
    let built = || anyhow::Ok(runtime.block_on(opened.index().status())?.approximate == Some(n));
    while !built()? {
        std::thread::sleep(Duration::from_millis(50));
    }
    println!("graph built in                     {:>9.1} s", since.elapsed().as_secs_f64());
    println!("resident                           {:>9.0} MiB", mib());
    approximate(&opened, queries, &exact)?;
    drop(opened);
    let since = Instant::now();
    let opened = open(exact_up_to)?;
    let seconds = since.elapsed().as_secs_f64();
    while runtime.block_on(opened.index().status())?.approximate != Some(n) {
        std::thread::sleep(Duration::from_millis(5));
    }
    println!("opened in {seconds:.2} s, with its graph after {:.2} s", since.elapsed().as_secs_f64());
    Ok(())
}

fn item(number: usize, vector: &[f32]) -> Item {
    Item {
        id: format!("item-{number}"),
        vector: vector.to_vec(),
        metadata: JsonMap::from_iter([("n".to_string(), number.into())]).into(),
        image: None,
        has_image: false,
        hash: None,
    }
}

/// Items a second where each of 64 callers replaces one at a time: they share commits.
async fn writers(index: &dyn Index, encoder: &EncoderIdentity, vectors: &[Vec<f32>]) -> Result<f64> {
    let since = Instant::now();
    let caller = async |t: usize| -> Result<usize> {
        let mut done = 0;
        while since.elapsed() < SPAN {
            let number = (t * 7919 + done * 64) % vectors.len();
            index.put(encoder, vec![item(number, &vectors[number])]).await?;
            done += 1;
        }
        Ok(done)
    };
    let done = futures_util::future::join_all((0..64).map(caller)).await;
    let done: usize = done.into_iter().collect::<Result<Vec<_>>>()?.into_iter().sum();
    Ok(done as f64 / since.elapsed().as_secs_f64())
}

fn approximate(index: &Opened, queries: &[Vec<f32>], exact: &[Vec<Hit>]) -> Result<()> {
    let mut found = 0;
    for (query, exact) in queries.iter().zip(exact) {
        let near = index.search(std::slice::from_ref(query), false)?.remove(0);
        found += near.iter().filter(|hit| exact.iter().any(|e| e.id == hit.id)).count();
    }
    println!("recall@10                          {:>9.4}", found as f64 / (10 * queries.len()) as f64);
    let mut times = Vec::new();
    let since = Instant::now();
    while since.elapsed() < SPAN {
        let one = Instant::now();
        index.search(std::slice::from_ref(&queries[times.len() % queries.len()]), false)?;
        times.push(one.elapsed());
    }
    times.sort();
    println!("approximate, one thread            {:>9.0} queries/s", times.len() as f64 / SPAN.as_secs_f64());
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    println!("                                   p50 {:.3} ms, p99 {:.3} ms", at(0.5), at(0.99));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let done: Result<Vec<f64>> = std::thread::scope(|scope| {
        let run =
            |t: usize| rate(move |i| index.search(&queries[(i * 7 + t) % queries.len()..][..1], false), queries.len());
        let threads: Vec<_> = (0..threads).map(|t| scope.spawn(move || run(t))).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| anyhow::bail!("a thread failed"))).collect()
    });
    println!("approximate, {threads} threads             {:>9.0} queries/s", done?.iter().sum::<f64>());
    Ok(())
}

/// Calls a second, `call` getting numbers below `count` in turn.
fn rate<T>(call: impl Fn(usize) -> Result<T>, count: usize) -> Result<f64> {
    call(0)?;
    let (mut done, since) = (0, Instant::now());
    while since.elapsed() < SPAN {
        std::hint::black_box(call(done % count)?);
        done += 1;
    }
    Ok(done as f64 / since.elapsed().as_secs_f64())
}

fn mib() -> f64 {
    resident_bytes() as f64 / f64::from(1 << 20)
}

fn read(path: &str, dim: usize) -> Result<Vec<Vec<f32>>> {
    let bytes = std::fs::read(path).with_context(|| path.to_string())?;
    ensure!(bytes.len() % (4 * dim) == 0, "{path} does not hold vectors of {dim} numbers");
    let row = |row: &[u8]| row.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    Ok(bytes.chunks_exact(4 * dim).map(row).collect())
}

/// Unit vectors around 1000 centres, each cloud in 24 directions of its own and a little in all others.
fn clouds(n: usize, dim: usize) -> Vec<Vec<f32>> {
    let mut state = 1u64;
    let mut noise = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let mut vector = |scale: f32| -> Vec<f32> { (0..dim).map(|_| scale * noise()).collect() };
    let centres: Vec<Vec<f32>> = (0..1000).map(|_| vector(1.0)).collect();
    let directions: Vec<Vec<f32>> = (0..24).map(|_| vector(0.5)).collect();
    (0..n)
        .map(|i| {
            let (weights, mut v) = (vector(1.0), vector(0.1));
            for (x, c) in v.iter_mut().zip(&centres[i * 7919 % 1000]) {
                *x += c;
            }
            for (weight, direction) in weights.iter().zip(&directions) {
                v.iter_mut().zip(direction).for_each(|(x, d)| *x += weight * d);
            }
            let norm = v.iter().map(|x| x * x).sum::<f32>().sqrt();
            v.iter().map(|x| x / norm).collect()
        })
        .collect()
}
