#include "persia/extent_file.h"

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

namespace persia {
namespace {

constexpr unsigned kReaders = 16;  // reads under way at a time: what a drive needs to be busy
constexpr std::size_t kMinReadsForThreads = 8;
constexpr std::size_t kMostHeld = 1 << 20;

int open_unnamed(const std::string& folder) {
#ifdef O_TMPFILE
    const int file = open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (file >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL)) return file;
#endif
    std::string name = folder + "/.persia-cold-XXXXXX";  // where file systems can't make one without a name
    const int named = mkstemp(name.data());
    if (named >= 0) unlink(name.c_str());
    return named;
}

void sort_by_place(std::vector<FileRead>& reads) {
    std::sort(reads.begin(), reads.end(),
              [](const FileRead& a, const FileRead& b) { return a.offset < b.offset; });
}

}  // namespace

ExtentFile::ExtentFile(const std::string& folder, std::size_t extent_bytes)
    : folder_(folder), extent_bytes_(extent_bytes), file_(open_unnamed(folder)) {
    if (file_ < 0) throw DiskError(says("can't make a file there", errno));
    posix_fadvise(file_, 0, 0, POSIX_FADV_RANDOM);  // rows beside the wanted one are not wanted
}

ExtentFile::ExtentFile(const std::string& path)
    : folder_(path), extent_bytes_(0), file_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (file_ < 0) throw DiskError(says("can't open the file", errno));
    posix_fadvise(file_, 0, 0, POSIX_FADV_RANDOM);
}

ExtentFile::~ExtentFile() {
    readers_.reset();
    mapped_.reset();
    close(file_);
}

std::string ExtentFile::says(const char* what, int error) const {
    const bool limit = error == EMFILE || error == ENFILE;
    return "the disk tier in " + folder_ + ": " + what + ": " + std::strerror(error) +
           (limit ? "; let processes have more of them (ulimit -Hn, or LimitNOFILE of slurmd)" : "");
}

void ExtentFile::read_one(const Read& read) const {
    std::size_t done = 0;
    while (done < read.bytes) {
        const ssize_t got =
            pread(file_, read.to + done, read.bytes - done, static_cast<off_t>(read.offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) throw DiskError(says("can't read", errno));
        if (got == 0)
            throw DiskError("the disk tier in " + folder_ + ": the file is shorter than what was written");
        done += static_cast<std::size_t>(got);
    }
}

MappedReads* ExtentFile::mapped() const {
    if (!mapped_ && !has_no_map_) mapped_ = MappedReads::make(file_);
    has_no_map_ = !mapped_;
    return mapped_.get();
}

bool ExtentFile::in_memory([[maybe_unused]] const Read& read) const {
#ifdef RWF_NOWAIT
    const iovec to{read.to, read.bytes};
    return preadv2(file_, &to, 1, static_cast<off_t>(read.offset), RWF_NOWAIT) ==
           static_cast<ssize_t>(read.bytes);
#else
    return false;
#endif
}

bool ExtentFile::is_held(const Read& read) const {
    if (read.offset < held_at_ || read.offset >= held_at_ + held_.size()) return false;
    std::copy_n(held_.data() + (read.offset - held_at_), read.bytes, read.to);
    return true;
}

void ExtentFile::read(std::vector<Read>& reads) const {
    if (!held_.empty()) {
        reads.erase(
            std::remove_if(reads.begin(), reads.end(), [&](const Read& each) { return is_held(each); }),
            reads.end());
    }
    if (reads.empty()) return;
    if (MappedReads* const copies = mapped()) copies->read(reads);
    sort_by_place(reads);
    if (reads.size() >= kMinReadsForThreads && !has_no_ring_) {
        if (!ring_) ring_ = ReadRing::make(file_);
        has_no_ring_ = !ring_ || !ring_->usable();
        if (!has_no_ring_) {
            ring_->read(reads);
            for (const Read& each : reads) read_one(each);  // which says what is wrong
            return;
        }
    }
    reads.erase(std::remove_if(reads.begin(), reads.end(), [&](const Read& each) { return in_memory(each); }),
                reads.end());
    if (reads.size() < kMinReadsForThreads) {
        for (const Read& each : reads) read_one(each);
        return;
    }
    if (!readers_) readers_ = std::make_unique<ThreadTeam>(kReaders);
    readers_->run([&](unsigned thread) {
        const std::size_t begin = reads.size() * thread / kReaders,
                          end = reads.size() * (thread + 1) / kReaders;
        for (std::size_t i = begin; i < end; ++i) read_one(reads[i]);
    });
}

bool ExtentFile::ask_for(std::vector<Read>& reads) const {
    if (reads.empty()) return false;
    if (MappedReads* const copies = mapped()) copies->leave_missing(reads);
    sort_by_place(reads);
    for (const Read& each : reads) ask_for(each.offset, each.bytes);
    return !reads.empty();
}

void ExtentFile::ask_for(std::uint64_t offset, std::size_t bytes) const {
    posix_fadvise(file_, static_cast<off_t>(offset), static_cast<off_t>(bytes), POSIX_FADV_WILLNEED);
}

void ExtentFile::write_at(std::uint64_t offset, const std::byte* from, std::size_t bytes) const {
    std::size_t done = 0;
    while (done < bytes) {
        const ssize_t put = pwrite(file_, from + done, bytes - done, static_cast<off_t>(offset + done));
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) throw DiskFull(says("can't write", errno));
        done += static_cast<std::size_t>(put);
    }
}

void ExtentFile::write_held() {
    write_at(held_at_, held_.data(), held_.size());
    held_.clear();
    if (!gathers_) held_ = {};
}

void ExtentFile::write(std::uint32_t extent, const std::byte* from) {
    const std::uint64_t offset = std::uint64_t{extent} * extent_bytes_;
    const bool fits = gathers_ && offset == held_at_ + held_.size() && held_.size() < kMostHeld;
    if (!held_.empty() && !fits) write_held();
    if (!gathers_) {
        write_at(offset, from, extent_bytes_);
        return;
    }
    if (held_.empty()) {
        held_at_ = offset;
        held_.reserve(kMostHeld + extent_bytes_);
    }
    held_.insert(held_.end(), from, from + extent_bytes_);
}

}  // namespace persia
