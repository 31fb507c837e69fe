//! Compiles `inference.proto` to Rust code, and to the descriptors for the gRPC reflection service.

use std::path::Path;

use prost::Message as _;

fn main() -> anyhow::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let descriptors = protox::compile([folder.join("inference.proto")], [&folder])?;
    let mut plain = descriptors.clone();
    // Clients do not need comments and source positions.
    plain.file.iter_mut().for_each(|file| file.source_code_info = None);
    std::fs::write(folder.join("inference.bin"), plain.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_client(false)
        .build_transport(false)
        // As `Bytes`, contents of tensors share the memory of their message.
        .bytes(".")
        .out_dir(&folder)
        .compile_fds(descriptors)?;
    Ok(())
}
