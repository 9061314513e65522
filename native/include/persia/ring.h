// A ring of records: one producer, one consumer, in memory that both see or that one-sided MPI fills.
//
// docs/rma_protocol.md is the protocol. An *entry* is a header and a body, or one chunk of a body. `head` and
// `tail` are byte counts that only grow; modulo the ring's size they say where the bytes lie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "persia/bell.h"
#include "persia/span.h"

namespace persia {

constexpr std::uint64_t kLine = 64;  // headers and arrays lie on lines of their own
constexpr std::uint32_t kRingMagic = 0x50485243;
constexpr std::uint16_t kRingVersion = 1;
constexpr std::uint16_t kPaddingFlag = 1;
constexpr std::uint16_t kCloseKind = 0xFFFF;

struct EntryHeader {
    std::uint32_t magic;  // in native byte order: a peer of the other order shows as bad magic
    std::uint16_t version, kind;
    std::uint64_t sequence, step, tag;
    std::uint32_t trainer;
    std::uint16_t num_arrays, flags;
    std::uint64_t body_bytes, chunk_begin, chunk_bytes;
};
static_assert(sizeof(EntryHeader) == kLine, "a header is one line");

// An array in a body's directory.
struct ArrayEntry {
    std::uint32_t dtype, num_dimensions;
    std::uint64_t rows, columns;  // columns is 1 for one dimension
};
static_assert(sizeof(ArrayEntry) == 24, "part of the format");

struct RecordFields {
    std::uint16_t kind;
    std::uint32_t trainer;
    std::uint64_t step, tag;
};

// The ring holds what its peer can't have written.
struct RingError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

inline std::uint64_t aligned(std::uint64_t bytes) { return (bytes + kLine - 1) & ~(kLine - 1); }

// The directory and where each array begins in the body.
class BodyLayout {
  public:
    explicit BodyLayout(std::size_t num_arrays) { clear(num_arrays); }
    // Begins again, in the same memory.
    void clear(std::size_t num_arrays) {
        body_bytes = aligned(num_arrays * sizeof(ArrayEntry));
        directory.clear();
        offsets.clear();
        directory.reserve(num_arrays);
        offsets.reserve(num_arrays);
    }
    void add(const ArrayEntry& array, std::uint64_t item_bytes) {
        directory.push_back(array);
        offsets.push_back(body_bytes);
        body_bytes += aligned(array.rows * array.columns * item_bytes);
    }
    std::vector<ArrayEntry> directory;
    std::vector<std::uint64_t> offsets;
    std::uint64_t body_bytes = 0;
};

// Where the array of a directory entry ends if it begins at `begin`; RingError if it leaves the body.
std::uint64_t array_end(const ArrayEntry& array, std::uint64_t item_bytes, std::uint64_t begin,
                        std::uint64_t body_bytes, std::size_t index);

// A record on its way out.
struct Message {
    struct Piece {
        const std::uint8_t* data;
        std::uint64_t offset, bytes;  // in the body
    };
    RecordFields fields;
    BodyLayout layout{0};
    std::vector<Piece> pieces;  // ascending, without the directory
    bool begun = false;         // an empty body still needs one entry
    std::uint64_t written = 0;

    bool complete() const { return begun && written == layout.body_bytes; }
};

class RingProducer {
  public:
    // data [ring bytes]. words [ring bytes / kLine]: the consumer's, if they are in reach of plain stores,
    // and its bell; else none, and what is written stays unannounced until `take_held`. `data` is then a
    // mirror of the consumer's ring.
    RingProducer(Span<std::uint8_t> data, const std::uint64_t* tail, Span<std::uint64_t> words, Bell* bell);

    // Writes a message's next entry; false if there is no room.
    bool write(Message& message);
    // The body of an entry to be filled in place, directory written; null if there is no room or the record
    // would not fit one entry. `commit` sends it.
    std::uint8_t* reserve(const RecordFields& fields, const BodyLayout& layout);
    void commit();
    void cancel() { reserved_size_ = 0; }
    bool reserved() const { return reserved_size_ != 0; }

    // A message found no room, and now the consumer has given some back.
    bool has_news() const;
    void close();  // lets go of the memory

    struct Held {
        std::uint64_t first, last;
        std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;  // bytes of the ring
    };
    Held take_held();
    std::uint64_t held_entries() const { return sequence_ - published_; }
    std::uint64_t held_bytes() const;

    std::uint64_t max_entry() const { return max_entry_; }
    std::uint64_t head() const { return head_; }
    // Bytes written or reserved that the consumer hasn't given back, as far as it has told.
    std::uint64_t used() const;
    std::uint64_t records() const { return records_; }  // sent in all
    std::uint64_t bytes() const { return bytes_; }      // of these, with headers

  private:
    bool has_room(std::uint64_t size);
    std::uint64_t place(std::uint64_t size);
    EntryHeader header(const RecordFields& fields, std::uint16_t num_arrays, std::uint64_t body_bytes) const;
    void finish(std::uint64_t position, std::uint64_t size, bool is_last);
    void hold(std::uint64_t position, std::uint64_t size);

    std::uint8_t* data_;
    std::uint64_t ring_bytes_, num_words_, max_entry_;
    const std::uint64_t* tail_word_;
    std::uint64_t* words_;
    Bell* bell_;
    std::uint64_t head_ = 0, tail_ = 0;
    std::uint64_t sequence_ = 0, published_ = 0;  // of the last entry written, and announced
    std::uint64_t records_ = 0, bytes_ = 0;
    std::uint64_t reserved_position_ = 0, reserved_size_ = 0;
    bool starved_ = false;
    std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges_;
};

class RingConsumer {
  public:
    struct Entry {
        EntryHeader header;
        std::uint8_t* body;  // of this chunk
        std::uint64_t number;
    };

    // data [ring bytes], words [ring bytes / kLine]. tail: the producer's, and its bell, if it is in reach of
    // plain stores; else null, and the caller sends `released` itself.
    RingConsumer(Span<std::uint8_t> data, Span<const std::uint64_t> words, std::uint64_t* tail, Bell* bell);

    // Whether there is an entry, or a damaged word.
    bool has_news() const;
    // The next entry; false if there is none. Throws RingError, having changed nothing.
    bool next(Entry& entry);
    // Its header, without taking it.
    bool peek(EntryHeader& header) const;
    // An entry's room may be used again; entries in any order, each once.
    void release(std::uint64_t number);
    // Tells the producer how much was released, if it doesn't know.
    void publish_tail();
    // Whether an entry waits that isn't CLOSE.
    bool unread() const;
    void close();

    std::uint64_t ring_bytes() const { return ring_bytes_; }
    std::uint64_t next_number() const { return next_; }
    std::uint64_t released() const { return released_; }
    std::uint64_t bytes() const { return bytes_; }  // received in all, with headers

  private:
    EntryHeader read_header(std::uint64_t position) const;

    struct Room {
        std::uint64_t end;
        bool free;
    };
    std::uint8_t* data_;
    std::uint64_t ring_bytes_, num_words_;
    const std::uint64_t* words_;
    std::uint64_t* tail_word_;
    Bell* bell_;
    std::uint64_t next_ = 1;   // number of the next entry
    std::uint64_t slot_ = 1;   // its word
    std::uint64_t stale_ = 0;  // what the word holds until the entry comes: the number one lap earlier
    std::uint64_t head_ = 0, released_ = 0;
    std::uint64_t published_ = 0;  // part of `released` that the producer was told
    std::uint64_t bytes_ = 0;
    std::deque<Room> held_;  // the last of them is entry next_ - 1
};

}  // namespace persia
