//! Compiles the etcd client without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=proto");
    #[cfg(feature = "etcd")]
    {
        let files = protox::compile(["proto/etcdserverpb.proto"], ["proto"])?;
        tonic_prost_build::configure()
            .build_server(false)
            .compile_fds(files)?;
    }
    Ok(())
}
