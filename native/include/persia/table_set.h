// The tables of one server, for calls that concern all of them at once: a whole record each.
//
// A record has keys [U] in the order of the tables, counts [T] of them, and rows in a block for each dim
// group, in the order of its tables. Threads may share tables: each table is locked while it is worked on,
// and no longer. All calls throw std::invalid_argument, before they change anything, for what Table refuses
// and for counts that don't fit keys or blocks. T: tables, G: dim groups.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "persia/table.h"

namespace persia {

// A table with the lock that lets threads share it.
struct SharedTable {
    explicit SharedTable(const TableConfig& config) : table(config) {}

    Table table;
    std::mutex mutex;
};

struct RecordKeys {
    Keys keys;                         // [U]
    Span<const std::uint32_t> counts;  // [T]
};

struct PushRecord {
    RecordKeys of;
    Span<const std::uint32_t> slots;   // [U]
    std::vector<ConstRows> gradients;  // [G]
    Span<const std::uint32_t> epochs;  // [T]
};

class TableSet {
  public:
    // groups [T]: of each table its dim group. dims [G]. No table (null) where this server has no buckets.
    // threads: that share the tables of a call with enough keys, where no table has shards for them.
    // ahead: pulls will be looked up ahead.
    TableSet(std::vector<std::shared_ptr<SharedTable>> tables, std::vector<std::uint32_t> groups,
             std::vector<std::uint32_t> dims, unsigned threads = 1, bool ahead = false);

    std::size_t num_tables() const { return tables_.size(); }
    const std::vector<std::uint32_t>& dims() const { return dims_; }

    // Rows of each dim group; with `wanted` [U] those that have a 1.
    std::vector<std::uint64_t> row_counts(Span<const std::uint32_t> counts,
                                          Span<const std::uint8_t> wanted) const;

    // The calls of Table, for all tables that have keys in the record. epochs: [T], 0 for the others.
    void pull(const RecordKeys& of, std::uint32_t step, const std::vector<Rows>& out,
              Span<std::uint32_t> slots, Span<const std::uint8_t> wanted, Span<std::uint32_t> epochs);
    void ask_disk(const RecordKeys& of) const;
    void lookup(const RecordKeys& of, const std::vector<Rows>& out) const;
    // A pull ahead of its step.
    void look_ahead(const RecordKeys& of, const std::vector<Rows>& out, Span<std::uint32_t> slots) const;
    void mark_differing(const RecordKeys& of, std::uint32_t since, std::uint32_t used_by,
                        Span<std::uint32_t> slots, Span<std::uint8_t> differs);
    void pull_again(const RecordKeys& of, std::uint32_t step, std::uint32_t since, bool noted,
                    Span<std::uint32_t> slots, Span<std::uint8_t> differs, Span<std::uint32_t> epochs);
    // positions [G]: of so many in each dim group.
    void encode_differing(const RecordKeys& of, Span<const std::uint32_t> slots,
                          Span<const std::uint8_t> differs, const std::vector<std::uint32_t*>& positions,
                          const std::vector<Rows>& out);
    void say_marked(const RecordKeys& of, Span<const std::uint32_t> slots, Span<std::uint8_t> marked) const;
    bool calm() const;
    // One update per row with the sum of all records' gradients, see Table::push_step(); or of some rows.
    PushCounts push(const std::vector<PushRecord>& records, std::uint32_t step,
                    PushPart part = PushPart::kAll);
    std::uint64_t evict(std::uint32_t step);
    void set_lr(Span<const double> rates);  // [T]

  private:
    struct Part {  // of a record: one table's
        std::uint32_t table;
        std::size_t begin, end;            // of the keys
        std::size_t rows_begin, rows_end;  // of the rows in the dim group's block
    };
    struct Pushed {  // what one table gets of all records
        std::uint32_t table;
        std::size_t begin, end;  // of a list of batches
    };

    std::vector<Part> parts_of(Span<const std::uint32_t> counts, Span<const std::uint8_t> wanted) const;
    template <class Block>
    std::vector<Part> checked_parts(const RecordKeys& of, Span<const std::uint8_t> wanted,
                                    const std::vector<Block>& blocks) const;
    template <class Block>
    Block rows_of(const Part& part, const std::vector<Block>& blocks) const;
    // use(table, shard, part) for each shard of each part's table, which is locked: with enough keys by a
    // thread for each number of a shard, or each thread for some tables. Each time soon after
    // ask(table, shard, part) and then then(). size_of(part): its keys.
    template <class Each, class Size, class Ask, class Then, class Use>
    void work(const std::vector<Each>& parts, Size&& size_of, Ask&& ask, Then&& then, Use&& use) const;
    template <class Use>
    void work_on_keys(const RecordKeys& of, const std::vector<Part>& parts, Use&& use) const;

    std::vector<std::shared_ptr<SharedTable>> tables_;
    std::vector<std::uint32_t> groups_;
    std::vector<std::uint32_t> dims_;
    bool by_shards_ = false;            // the threads share each table, not the tables
    std::unique_ptr<ThreadTeam> team_;  // none for a single thread
    mutable std::mutex team_mutex_;
};

}  // namespace persia
