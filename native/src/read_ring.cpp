#include "persia/read_ring.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#if __has_include(<linux/io_uring.h>) && defined(SYS_io_uring_setup)
#include <linux/io_uring.h>
#define PERSIA_HAS_IO_URING 1
#endif

namespace persia {

#ifdef PERSIA_HAS_IO_URING

namespace {

constexpr std::uint8_t kRead = 22;  // IORING_OP_READ, which headers before Linux 5.6 lack

class Mapped {
  public:
    Mapped(int ring, std::size_t bytes, off_t offset)
        : bytes_(bytes),
          at_(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, offset)) {}
    ~Mapped() {
        if (is_there()) munmap(at_, bytes_);
    }
    Mapped(const Mapped&) = delete;
    Mapped& operator=(const Mapped&) = delete;

    bool is_there() const { return at_ != MAP_FAILED; }
    template <class T>
    T* at(std::size_t offset) const {
        return reinterpret_cast<T*>(static_cast<std::byte*>(at_) + offset);
    }

  private:
    std::size_t bytes_;
    void* at_;
};

}  // namespace

struct ReadRing::Queues {
    Mapped asked_ring, done_ring, entries;
    std::uint32_t *asked_tail, *asked_mask, *order;
    std::uint32_t *done_head, *done_tail, *done_mask;
    io_uring_sqe* asked;
    io_uring_cqe* done;

    Queues(int ring, const io_uring_params& of)
        : asked_ring(ring, of.sq_off.array + of.sq_entries * sizeof(std::uint32_t), IORING_OFF_SQ_RING),
          done_ring(ring, of.cq_off.cqes + of.cq_entries * sizeof(io_uring_cqe), IORING_OFF_CQ_RING),
          entries(ring, of.sq_entries * sizeof(io_uring_sqe), IORING_OFF_SQES) {
        if (!is_there()) return;
        asked_tail = asked_ring.at<std::uint32_t>(of.sq_off.tail);
        asked_mask = asked_ring.at<std::uint32_t>(of.sq_off.ring_mask);
        order = asked_ring.at<std::uint32_t>(of.sq_off.array);
        done_head = done_ring.at<std::uint32_t>(of.cq_off.head);
        done_tail = done_ring.at<std::uint32_t>(of.cq_off.tail);
        done_mask = done_ring.at<std::uint32_t>(of.cq_off.ring_mask);
        asked = entries.at<io_uring_sqe>(0);
        done = done_ring.at<io_uring_cqe>(of.cq_off.cqes);
        for (std::uint32_t i = 0; i < of.sq_entries; ++i) order[i] = i;
    }
    bool is_there() const { return asked_ring.is_there() && done_ring.is_there() && entries.is_there(); }

    void ask(std::uint32_t tail, const FileRead& read, std::uint64_t number) const {
        io_uring_sqe& entry = asked[tail & *asked_mask];
        entry = {};
        entry.opcode = kRead;
        entry.flags = IOSQE_FIXED_FILE;  // the first of those that are registered
        entry.off = read.offset;
        entry.addr = reinterpret_cast<std::uint64_t>(read.to);
        entry.len = static_cast<std::uint32_t>(read.bytes);
        entry.user_data = number;
    }
};

std::unique_ptr<ReadRing> ReadRing::make(int file) {
    io_uring_params params{};
    const auto ring = static_cast<int>(syscall(SYS_io_uring_setup, kDepth, &params));
    if (ring < 0) return nullptr;
    auto queues = std::make_unique<Queues>(ring, params);
    const bool there = queues->is_there();
    std::unique_ptr<ReadRing> made(new ReadRing(ring, std::move(queues)));
    if (!there || syscall(SYS_io_uring_register, ring, IORING_REGISTER_FILES, &file, 1) < 0) return nullptr;
    return made;
}

void ReadRing::read(std::vector<FileRead>& reads) {
    Queues& q = *queues_;
    std::vector<std::size_t> left;
    left.reserve(reads.size());                  // no allocation may fail while reads are under way
    std::size_t asked = 0, taken = 0, done = 0;  // by us, by the kernel, and those that have ended
    std::uint32_t tail = *q.asked_tail;
    while (done < reads.size()) {
        for (; asked < reads.size() && asked - done < kDepth; ++asked) q.ask(tail++, reads[asked], asked);
        __atomic_store_n(q.asked_tail, tail, __ATOMIC_RELEASE);
        const long sent = syscall(SYS_io_uring_enter, ring_, static_cast<unsigned>(asked - taken), 1u,
                                  IORING_ENTER_GETEVENTS, nullptr, 0);
        if (sent > 0) taken += static_cast<std::size_t>(sent);
        // What is under way writes to memory that must stay until it ends, so it is waited for in any case.
        if (sent < 0 && taken == done && errno != EINTR) {
            usable_ = false;
            for (std::size_t i = taken; i < reads.size(); ++i) left.push_back(i);
            break;
        }
        std::uint32_t head = *q.done_head;
        const std::uint32_t end = __atomic_load_n(q.done_tail, __ATOMIC_ACQUIRE);
        for (; head != end; ++head, ++done) {
            const io_uring_cqe& ended = q.done[head & *q.done_mask];
            const auto number = static_cast<std::size_t>(ended.user_data);
            if (ended.res == static_cast<std::int32_t>(reads[number].bytes)) continue;
            if (ended.res == -EINVAL || ended.res == -EOPNOTSUPP) usable_ = false;
            left.push_back(number);
        }
        __atomic_store_n(q.done_head, head, __ATOMIC_RELEASE);
    }
    std::sort(left.begin(), left.end());
    for (std::size_t i = 0; i < left.size(); ++i) reads[i] = reads[left[i]];
    reads.resize(left.size());
}

#else

struct ReadRing::Queues {};

std::unique_ptr<ReadRing> ReadRing::make(int) { return nullptr; }

void ReadRing::read(std::vector<FileRead>&) {}

#endif

ReadRing::ReadRing(int ring, std::unique_ptr<Queues> queues) : ring_(ring), queues_(std::move(queues)) {}

ReadRing::~ReadRing() { close(ring_); }

}  // namespace persia
