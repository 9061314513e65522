// A fixed-size array on a 64-byte boundary whose elements start uninitialised.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#include <type_traits>

namespace persia {

constexpr std::size_t kAlignment = 64;  // a cache line, and what the record rings keep

template <typename T>
class AlignedArray {
    static_assert(std::is_trivial<T>::value, "elements are never constructed");

  public:
    AlignedArray() = default;
    explicit AlignedArray(std::size_t size) : size_(size) {
        const std::size_t bytes = (size * sizeof(T) + kAlignment) / kAlignment * kAlignment;
        data_.reset(static_cast<T*>(std::aligned_alloc(kAlignment, bytes)));
        if (!data_) throw std::bad_alloc();
    }

    std::size_t size() const { return size_; }
    T* data() { return data_.get(); }
    const T* data() const { return data_.get(); }
    T& operator[](std::size_t i) { return data_.get()[i]; }
    const T& operator[](std::size_t i) const { return data_.get()[i]; }
    const T* begin() const { return data(); }
    const T* end() const { return data() + size_; }

    // Gives the memory away: the caller frees it with std::free.
    T* release() {
        size_ = 0;
        return data_.release();
    }

  private:
    struct Free {
        void operator()(T* data) const { std::free(data); }
    };
    std::unique_ptr<T[], Free> data_;
    std::size_t size_ = 0;
};

}  // namespace persia
