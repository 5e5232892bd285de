//! Arguments of calls about files, in the words by which a journal compares them: they must not change from release to release.

use wasmtime_wasi::p2::bindings::filesystem::types::{Advice, DescriptorFlags, NewTimestamp, OpenFlags, PathFlags};

/// Those of the names whose flag is set.
fn set<const N: usize>(names: [(&'static str, bool); N]) -> String {
    let set: Vec<_> = names.into_iter().filter(|(_, set)| *set).map(|(name, _)| name).collect();
    set.join(" ")
}

/// How a path is walked.
pub(super) fn how(how: PathFlags) -> &'static str {
    if how.contains(PathFlags::SYMLINK_FOLLOW) { "follow" } else { "no-follow" }
}

/// How something is opened.
pub(super) fn open(open: OpenFlags, flags: DescriptorFlags) -> String {
    set([
        ("create", open.contains(OpenFlags::CREATE)),
        ("directory", open.contains(OpenFlags::DIRECTORY)),
        ("exclusive", open.contains(OpenFlags::EXCLUSIVE)),
        ("truncate", open.contains(OpenFlags::TRUNCATE)),
        ("read", flags.contains(DescriptorFlags::READ)),
        ("write", flags.contains(DescriptorFlags::WRITE)),
        ("file-integrity-sync", flags.contains(DescriptorFlags::FILE_INTEGRITY_SYNC)),
        ("data-integrity-sync", flags.contains(DescriptorFlags::DATA_INTEGRITY_SYNC)),
        ("requested-write-sync", flags.contains(DescriptorFlags::REQUESTED_WRITE_SYNC)),
        ("mutate-directory", flags.contains(DescriptorFlags::MUTATE_DIRECTORY)),
    ])
}

/// What is said about the reads to come.
pub(super) fn advice(advice: Advice) -> &'static str {
    match advice {
        Advice::Normal => "normal",
        Advice::Sequential => "sequential",
        Advice::Random => "random",
        Advice::WillNeed => "will-need",
        Advice::DontNeed => "dont-need",
        Advice::NoReuse => "no-reuse",
    }
}

/// What a time is set to.
pub(super) fn time(time: &NewTimestamp) -> String {
    match time {
        NewTimestamp::NoChange => "no-change".into(),
        NewTimestamp::Now => "now".into(),
        NewTimestamp::Timestamp(time) => format!("{}.{:09}", time.seconds, time.nanoseconds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_as_they_are() {
        assert_eq!([how(PathFlags::SYMLINK_FOLLOW), how(PathFlags::empty())], ["follow", "no-follow"]);
        let all = open(
            OpenFlags::CREATE | OpenFlags::DIRECTORY | OpenFlags::EXCLUSIVE | OpenFlags::TRUNCATE,
            DescriptorFlags::READ
                | DescriptorFlags::WRITE
                | DescriptorFlags::FILE_INTEGRITY_SYNC
                | DescriptorFlags::DATA_INTEGRITY_SYNC
                | DescriptorFlags::REQUESTED_WRITE_SYNC
                | DescriptorFlags::MUTATE_DIRECTORY,
        );
        let names = "create directory exclusive truncate read write file-integrity-sync data-integrity-sync \
                     requested-write-sync mutate-directory";
        assert_eq!((all.as_str(), open(OpenFlags::empty(), DescriptorFlags::empty())), (names, String::new()));
        let at = wasmtime_wasi::p2::bindings::clocks::wall_clock::Datetime { seconds: 5, nanoseconds: 7 };
        assert_eq!(time(&NewTimestamp::Timestamp(at)), "5.000000007");
        assert_eq!((time(&NewTimestamp::Now), advice(Advice::WillNeed)), ("now".into(), "will-need"));
    }
}
