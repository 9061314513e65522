// A few threads that do one job at a time together with the caller.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace persia {

class ThreadTeam {
  public:
    explicit ThreadTeam(unsigned size);  // with the caller; at least 1
    ~ThreadTeam();
    ThreadTeam(const ThreadTeam&) = delete;
    ThreadTeam& operator=(const ThreadTeam&) = delete;

    unsigned size() const { return static_cast<unsigned>(threads_.size()) + 1; }

    // job(i) for i in [0, size()), each on a thread of its own, the caller's being 0. Rethrows the exception
    // of the least i that threw, when all have ended.
    void run(const std::function<void(unsigned)>& job);

  private:
    void work(unsigned index);
    void attempt(unsigned index);

    std::vector<std::thread> threads_;
    std::mutex mutex_;
    std::condition_variable begin_, end_;
    const std::function<void(unsigned)>* job_ = nullptr;
    std::vector<std::exception_ptr> errors_;
    std::uint64_t round_ = 0;
    unsigned running_ = 0;
    bool stop_ = false;
};

}  // namespace persia
