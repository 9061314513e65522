// Elements that are owned elsewhere: a pointer with its length, passed by value. Nothing is checked.
#pragma once

#include <cstddef>
#include <type_traits>
#include <utility>

namespace persia {

template <typename T>
class Span {
  public:
    constexpr Span() = default;
    constexpr Span(T* data, std::size_t size) : data_(data), size_(size) {}
    // Of whatever has data() and size(): a vector, an AlignedArray, another span.
    template <class Owner,
              class = std::enable_if_t<std::is_convertible_v<decltype(std::declval<Owner&>().data()), T*>>>
    constexpr Span(Owner&& owner) : data_(owner.data()), size_(static_cast<std::size_t>(owner.size())) {}

    constexpr T* data() const { return data_; }
    constexpr std::size_t size() const { return size_; }
    constexpr bool empty() const { return size_ == 0; }
    constexpr T* begin() const { return data_; }
    constexpr T* end() const { return data_ + size_; }
    constexpr T& operator[](std::size_t i) const { return data_[i]; }
    // Elements [begin, end).
    constexpr Span slice(std::size_t begin, std::size_t end) const { return {data_ + begin, end - begin}; }

  private:
    T* data_ = nullptr;
    std::size_t size_ = 0;
};

}  // namespace persia
