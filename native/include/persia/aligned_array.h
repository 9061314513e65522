// A fixed-size array on a 64-byte boundary whose elements start uninitialised.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

namespace persia {

constexpr std::size_t kAlignment = 64;  // a cache line, and what the record rings keep

template <typename T>
class AlignedArray {
    static_assert(std::is_trivial<T>::value, "elements are never constructed");

  public:
    AlignedArray() = default;
    explicit AlignedArray(std::size_t size) : size_(size) {
        data_.reset(static_cast<T*>(std::aligned_alloc(kAlignment, bytes_of(size))));
        if (!data_) throw std::bad_alloc();
    }

    std::size_t size() const { return size_; }
    T* data() { return data_.get(); }
    const T* data() const { return data_.get(); }
    T& operator[](std::size_t i) { return data_.get()[i]; }
    const T& operator[](std::size_t i) const { return data_.get()[i]; }
    const T* begin() const { return data(); }
    const T* end() const { return data() + size_; }

    // Keeps the first `size` elements and gives the rest of the memory back.
    void shrink(std::size_t size) {
        if (size >= size_) return;
        if (void* const moved = std::realloc(data_.get(), bytes_of(size)); moved != nullptr) {
            (void)data_.release();
            data_.reset(static_cast<T*>(moved));
        }
        size_ = size;
        if (reinterpret_cast<std::uintptr_t>(data_.get()) % kAlignment == 0) return;
        AlignedArray smaller(size);  // realloc has moved it, and promises no alignment
        std::memcpy(smaller.data(), data_.get(), size * sizeof(T));
        *this = std::move(smaller);
    }

    // Gives the memory away: the caller frees it with std::free.
    T* release() {
        size_ = 0;
        return data_.release();
    }

  private:
    static std::size_t bytes_of(std::size_t size) {
        return (size * sizeof(T) + kAlignment) / kAlignment * kAlignment;
    }
    struct Free {
        void operator()(T* data) const { std::free(data); }
    };
    std::unique_ptr<T[], Free> data_;
    std::size_t size_ = 0;
};

}  // namespace persia
