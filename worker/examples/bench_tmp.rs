fn main() {
    let a: Vec<String> = std::env::args().collect();
    let isa = match a.get(3).map(|s| s.as_str()) {
        Some("avx2") => trireme_worker::backend::Isa::Avx2,
        Some("portable") => trireme_worker::backend::Isa::Portable,
        _ => trireme_worker::backend::Isa::detect(),
    };
    let b = trireme_worker::bench::EngineBench {
        model: a[1].clone().into(),
        threads: a[2].parse().unwrap(),
        prompt_tokens: 512,
        gen_tokens: 128,
        batches: vec![1, 8, 16],
        isa,
    };
    println!(
        "{}",
        serde_json::to_string_pretty(&b.run(&|s| eprintln!("{s}")).unwrap()).unwrap()
    );
}
