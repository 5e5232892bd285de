//! Steps with files: one call of `wasi:filesystem` each, and what it came to, in words.

use serde_json::{Value, json};
use wasip2::filesystem::preopens::get_directories;
use wasip2::filesystem::types::{
    Advice, Descriptor, DescriptorFlags, ErrorCode, NewTimestamp, OpenFlags, PathFlags, filesystem_error_code,
};
use wasip2::io::streams::StreamError;

const FOLLOW: PathFlags = PathFlags::SYMLINK_FOLLOW;

/// What the call `step["call"]` about the path `step["path"]` of the first folder comes to.
pub fn step(step: &Value) -> Value {
    let text = |name: &str| step[name].as_str().unwrap_or_default();
    let number = |name: &str| step[name].as_u64().unwrap_or(0);
    let Some((folder, _)) = get_directories().into_iter().next() else { return "no folder".into() };
    let (path, to) = (text("path"), text("to"));
    let open = |open, flags| folder.open_at(FOLLOW, path, open, flags);
    let read = || open(OpenFlags::empty(), DescriptorFlags::READ);
    let write = || open(OpenFlags::CREATE, DescriptorFlags::READ | DescriptorFlags::WRITE);
    match text("call") {
        "read-stream" => said(read().and_then(|file| read_stream(&file, number("from"), number("n")))),
        "skip" => said(read().and_then(|file| {
            let stream = file.read_via_stream(0)?;
            let skipped = stream.blocking_skip(number("n")).map_err(why);
            Ok((skipped, stream.read(10).map_err(why)))
        })),
        "read" => said(read().and_then(|file| file.read(number("n"), number("from")))),
        "write-stream" => said(write().and_then(|file| {
            let stream = file.write_via_stream(number("from"))?;
            let written = stream.blocking_write_and_flush(text("text").as_bytes()).map_err(why);
            Ok((written, stream.check_write().map_err(why)))
        })),
        "append" => said(write().and_then(|file| {
            let stream = file.append_via_stream()?;
            let wrote = stream.check_write().and_then(|_| stream.write(text("text").as_bytes())).map_err(why);
            Ok((wrote, stream.blocking_flush().map_err(why), stream.blocking_write_zeroes_and_flush(9).map_err(why)))
        })),
        "write" => said(write().and_then(|file| file.write(text("text").as_bytes(), number("from")))),
        "read-only" => said(read().and_then(|file| file.write(b"x", 0))),
        "copy" => said(read().and_then(|file| {
            let copy = folder.open_at(FOLLOW, to, OpenFlags::CREATE, DescriptorFlags::WRITE)?;
            let (from, to) = (file.read_via_stream(0)?, copy.write_via_stream(0)?);
            Ok(to.blocking_splice(&from, number("n")).map_err(why))
        })),
        "set-size" => said(write().and_then(|file| file.set_size(number("n")))),
        "sync" => said(write().and_then(|file| file.sync_data().and_then(|()| file.sync()))),
        "advise" => said(read().and_then(|file| file.advise(0, number("n"), Advice::Sequential))),
        "flags" => said(write().and_then(|file| Ok((file.get_flags()?, file.get_type()?)))),
        "stat" => said(read().and_then(|file| file.stat())),
        "stat-at" => said(folder.stat_at(PathFlags::empty(), path)),
        "hash" => said(read().and_then(|file| Ok((file.metadata_hash()?, folder.metadata_hash_at(FOLLOW, path)?)))),
        "same" => said(read().map(|file| (file.is_same_object(&file), file.is_same_object(&folder)))),
        "set-times" => said(write().and_then(|file| file.set_times(NewTimestamp::Now, NewTimestamp::NoChange))),
        "set-times-at" => said(folder.set_times_at(FOLLOW, path, NewTimestamp::NoChange, NewTimestamp::Now)),
        "list" => said(list(&folder, path)),
        "mkdir" => said(folder.create_directory_at(path)),
        "rmdir" => said(folder.remove_directory_at(path)),
        "unlink" => said(folder.unlink_file_at(path)),
        "rename" => said(folder.rename_at(path, &folder, to)),
        "link" => said(folder.link_at(PathFlags::empty(), path, &folder, to)),
        "symlink" => said(folder.symlink_at(to, path)),
        "readlink" => said(folder.readlink_at(path)),
        other => json!({ "unknown": other }),
    }
}

/// Pieces of a file as they came, and how that ended.
fn read_stream(file: &Descriptor, from: u64, piece: u64) -> Result<(Vec<String>, String), ErrorCode> {
    let stream = file.read_via_stream(from)?;
    let mut pieces = Vec::new();
    loop {
        match stream.blocking_read(piece) {
            Ok(bytes) => pieces.push(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) => return Ok((pieces, why(error))),
        }
    }
}

/// The names of a folder with their kinds, in the host's order.
fn list(folder: &Descriptor, path: &str) -> Result<Vec<String>, ErrorCode> {
    let open = folder.open_at(FOLLOW, path, OpenFlags::DIRECTORY, DescriptorFlags::READ)?;
    let names = open.read_directory()?;
    let mut all = Vec::new();
    while let Some(entry) = names.read_directory_entry()? {
        all.push(format!("{entry:?}"));
    }
    Ok(all)
}

fn why(error: StreamError) -> String {
    match error {
        StreamError::Closed => "closed".into(),
        StreamError::LastOperationFailed(error) => {
            format!("{:?}: {}", filesystem_error_code(&error), error.to_debug_string())
        }
    }
}

fn said<T: std::fmt::Debug>(result: Result<T, ErrorCode>) -> Value {
    format!("{result:?}").into()
}
