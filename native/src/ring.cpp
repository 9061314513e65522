#include "persia/ring.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>

namespace persia {

namespace {

// An entry is at most 3/8 of the ring: so are padding and entry together at most 3/4, and with an eighth of
// released room that the producer wasn't told of, a drained ring always has room for the next entry.
constexpr std::uint64_t kEntryParts = 3, kRingParts = 8;

std::string number(std::uint64_t value) { return std::to_string(value); }

std::string hexadecimal(std::uint32_t value) {
    char text[16];
    std::snprintf(text, sizeof text, "%#x", value);
    return text;
}

}  // namespace

std::uint64_t array_end(const ArrayEntry& array, std::uint64_t item_bytes, std::uint64_t begin,
                        std::uint64_t body_bytes, std::size_t index) {
    std::uint64_t size, end;
    if (__builtin_mul_overflow(array.rows, array.columns, &size) ||
        __builtin_mul_overflow(size, item_bytes, &size) || __builtin_add_overflow(begin, size, &end) ||
        end > body_bytes) {
        throw RingError("array " + number(index) + " of " + number(array.rows) + " x " +
                        number(array.columns) + " ends beyond its body of " + number(body_bytes) +
                        " bytes: a damaged directory");
    }
    return aligned(end);
}

RingProducer::RingProducer(Span<std::uint8_t> data, const std::uint64_t* tail, Span<std::uint64_t> words,
                           Bell* bell)
    : data_(data.data()),
      ring_bytes_(data.size()),
      num_words_(ring_bytes_ / kLine),
      max_entry_(ring_bytes_ / kRingParts * kEntryParts / kLine * kLine),
      tail_word_(tail),
      words_(words.data()),
      bell_(bell) {}

bool RingProducer::has_room(std::uint64_t size) {
    const std::uint64_t to_wrap = ring_bytes_ - head_ % ring_bytes_;
    const std::uint64_t end = head_ + size + (size > to_wrap ? to_wrap : 0);
    // The tail lies on a line that the consumer writes: looked at only when the last look isn't enough.
    if (end - tail_ > ring_bytes_) tail_ = __atomic_load_n(tail_word_, __ATOMIC_ACQUIRE);
    starved_ = end - tail_ > ring_bytes_;
    return !starved_;
}

bool RingProducer::has_news() const {
    return starved_ && tail_word_ != nullptr && __atomic_load_n(tail_word_, __ATOMIC_RELAXED) != tail_;
}

EntryHeader RingProducer::header(const RecordFields& fields, std::uint16_t num_arrays,
                                 std::uint64_t body_bytes) const {
    return {kRingMagic,     kRingVersion, fields.kind, sequence_ + 1, fields.step, fields.tag,
            fields.trainer, num_arrays,   0,           body_bytes,    0,           body_bytes};
}

// Where an entry goes; at the wrap a padding header sends the consumer to the ring's start.
std::uint64_t RingProducer::place(std::uint64_t size) {
    const std::uint64_t position = head_ % ring_bytes_;
    if (position + size <= ring_bytes_) return position;
    EntryHeader padding = header({0, 0, 0, 0}, 0, 0);
    padding.flags = kPaddingFlag;
    std::memcpy(data_ + position, &padding, sizeof padding);
    hold(position, sizeof padding);
    head_ += ring_bytes_ - position;
    return 0;
}

void RingProducer::hold(std::uint64_t position, std::uint64_t size) {
    if (words_ != nullptr) return;
    if (!ranges_.empty() && ranges_.back().second == position) {
        ranges_.back().second += size;
    } else {
        ranges_.emplace_back(position, position + size);
    }
}

void RingProducer::finish(std::uint64_t position, std::uint64_t size, bool is_last) {
    head_ += size;
    sequence_ += 1;
    bytes_ += size;
    records_ += is_last;
    hold(position, size);
    if (words_ == nullptr) return;
    __atomic_store_n(&words_[sequence_ % num_words_], sequence_, __ATOMIC_RELEASE);
    published_ = sequence_;
    if (bell_ != nullptr) ring(bell_);
}

bool RingProducer::write(Message& message) {
    const BodyLayout& layout = message.layout;
    const std::uint64_t begin = message.written;
    const std::uint64_t end = std::min(layout.body_bytes, begin + max_entry_ - sizeof(EntryHeader));
    const std::uint64_t size = sizeof(EntryHeader) + aligned(end - begin);
    if (!has_room(size)) return false;
    const std::uint64_t position = place(size);
    EntryHeader head =
        header(message.fields, static_cast<std::uint16_t>(layout.directory.size()), layout.body_bytes);
    head.chunk_begin = begin;
    head.chunk_bytes = end - begin;
    std::uint8_t* const entry = data_ + position;
    std::memcpy(entry, &head, sizeof head);
    const auto copy = [&](const std::uint8_t* data, std::uint64_t offset, std::uint64_t bytes) {
        const std::uint64_t first = std::max(offset, begin), last = std::min(offset + bytes, end);
        if (first < last)
            std::memcpy(entry + sizeof head + (first - begin), data + (first - offset), last - first);
    };
    copy(reinterpret_cast<const std::uint8_t*>(layout.directory.data()), 0,
         layout.directory.size() * sizeof(ArrayEntry));
    for (const Message::Piece& piece : message.pieces) copy(piece.data, piece.offset, piece.bytes);
    message.begun = true;
    message.written = end;
    finish(position, size, message.complete());
    return true;
}

std::uint8_t* RingProducer::reserve(const RecordFields& fields, const BodyLayout& layout) {
    const std::uint64_t size = sizeof(EntryHeader) + layout.body_bytes;
    if (size > max_entry_ || !has_room(size)) return nullptr;
    reserved_position_ = place(size);
    reserved_size_ = size;
    const EntryHeader head =
        header(fields, static_cast<std::uint16_t>(layout.directory.size()), layout.body_bytes);
    std::uint8_t* const entry = data_ + reserved_position_;
    std::memcpy(entry, &head, sizeof head);
    if (!layout.directory.empty()) {
        std::memcpy(entry + sizeof head, layout.directory.data(),
                    layout.directory.size() * sizeof(ArrayEntry));
    }
    return entry + sizeof head;
}

void RingProducer::commit() {
    finish(reserved_position_, reserved_size_, true);
    reserved_size_ = 0;
}

std::uint64_t RingProducer::held_bytes() const {
    std::uint64_t sum = 0;
    for (const auto& range : ranges_) sum += range.second - range.first;
    return sum;
}

RingProducer::Held RingProducer::take_held() {
    Held held{published_ + 1, sequence_, {}};
    held.ranges.swap(ranges_);
    published_ = sequence_;
    return held;
}

void RingProducer::close() {
    data_ = nullptr;
    tail_word_ = nullptr;
    words_ = nullptr;
    bell_ = nullptr;
}

std::uint64_t RingProducer::used() const {
    return head_ - (tail_word_ != nullptr ? __atomic_load_n(tail_word_, __ATOMIC_RELAXED) : head_);
}

RingConsumer::RingConsumer(Span<std::uint8_t> data, Span<const std::uint64_t> words, std::uint64_t* tail,
                           Bell* bell)
    : data_(data.data()),
      ring_bytes_(data.size()),
      num_words_(ring_bytes_ / kLine),
      words_(words.data()),
      tail_word_(tail),
      bell_(bell) {}

bool RingConsumer::has_news() const {
    return words_ != nullptr && __atomic_load_n(&words_[slot_], __ATOMIC_RELAXED) != stale_;
}

EntryHeader RingConsumer::read_header(std::uint64_t position) const {
    EntryHeader header;
    std::memcpy(&header, data_ + position, sizeof header);
    if (header.magic != kRingMagic || header.version != kRingVersion || header.sequence != next_) {
        throw RingError("got a header of magic " + hexadecimal(header.magic) + ", version " +
                        number(header.version) + ", sequence " + number(header.sequence) + ", expected " +
                        hexadecimal(kRingMagic) + ", " + number(kRingVersion) + ", " + number(next_) +
                        ": the ranks run different builds, a record was lost or the window was overwritten");
    }
    return header;
}

bool RingConsumer::next(Entry& entry) {
    if (words_ == nullptr) throw RingError("it was read after its window was freed");
    // Equality, not "at least": see the protocol.
    const std::uint64_t word = __atomic_load_n(&words_[slot_], __ATOMIC_ACQUIRE);
    if (word == stale_) return false;
    if (word != next_) {
        throw RingError("got sequence word " + number(word) + ", expected " + number(next_) + ", or " +
                        number(stale_) + " before it: a record was lost or the window was overwritten");
    }
    // The word of another node's producer was stored by MPI: on weakly ordered machines this is Win_sync's
    // part.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    std::uint64_t head = head_, position = head_ % ring_bytes_;
    entry.header = read_header(position);
    if (entry.header.flags & kPaddingFlag) {
        head += ring_bytes_ - position;
        position = 0;
        entry.header = read_header(0);
    }
    const std::uint64_t begin = entry.header.chunk_begin, bytes_here = entry.header.chunk_bytes;
    position += sizeof(EntryHeader);
    if (bytes_here > ring_bytes_ || position + bytes_here > ring_bytes_ || begin > entry.header.body_bytes ||
        bytes_here > entry.header.body_bytes - begin) {
        throw RingError("entry " + number(next_) + " claims " + number(bytes_here) + " bytes from " +
                        number(begin) + " of a body of " + number(entry.header.body_bytes) + " at " +
                        number(position) + ", expected it within a ring of " + number(ring_bytes_) +
                        " bytes");
    }
    const std::uint64_t size = sizeof(EntryHeader) + aligned(bytes_here);
    head_ = head + size;
    bytes_ += size;
    entry.body = data_ + position;
    entry.number = next_;
    held_.push_back({head_, false});
    next_ += 1;
    slot_ = next_ % num_words_;
    stale_ = next_ > num_words_ ? next_ - num_words_ : 0;
    return true;
}

void RingConsumer::release(std::uint64_t number) {
    const std::uint64_t first = next_ - held_.size();
    held_[number - first].free = true;
    while (!held_.empty() && held_.front().free) {
        released_ = held_.front().end;
        held_.pop_front();
    }
    if (tail_word_ != nullptr && released_ - published_ >= ring_bytes_ / kRingParts) publish_tail();
}

void RingConsumer::publish_tail() {
    if (released_ == published_ || tail_word_ == nullptr) return;
    published_ = released_;
    __atomic_store_n(tail_word_, released_, __ATOMIC_RELEASE);
    if (bell_ != nullptr) ring(bell_);
}

bool RingConsumer::peek(EntryHeader& header) const {
    if (words_ == nullptr || __atomic_load_n(&words_[slot_], __ATOMIC_ACQUIRE) != next_) return false;
    header = read_header(head_ % ring_bytes_);
    if (header.flags & kPaddingFlag) header = read_header(0);
    return true;
}

bool RingConsumer::unread() const {
    EntryHeader header;
    return peek(header) && header.kind != kCloseKind;
}

void RingConsumer::close() {
    data_ = nullptr;
    words_ = nullptr;
    tail_word_ = nullptr;
    bell_ = nullptr;
}

}  // namespace persia
