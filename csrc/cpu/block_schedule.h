// The order in which the block pairs of a symmetric matrix are visited by several threads.
//
// A visit of the pair (I, J) adds to sums that belong to block I and to block J. For these to be formed in place,
// without locks, and in an order that does not depend on the number of threads, blocks meet as the players of a
// tournament do: nobody plays twice in a round. Rounds end with a barrier, which costs time where threads do not run at
// the same speed, so blocks first form four teams of k. In each of three rounds every team meets one other: the k x k
// games of two teams take k turns of k disjoint games. With one or two threads, a thread plays all turns of a pair of
// teams, and there is a barrier per round; with more, the games of a turn are spread over the threads, and there is a
// barrier per turn. Each block meets the others in the same order either way.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "../parallel.h"

namespace simclr::cpu {

struct Block {
  int64_t begin, end;
};

// [0, size) in blocks; the last may be shorter.
class Blocks {
 public:
  Blocks(int64_t size, int64_t block) : size_(size), block_(block) {}
  int64_t count() const { return (size_ + block_ - 1) / block_; }
  Block operator[](int64_t i) const { return {i * block_, std::min(size_, (i + 1) * block_)}; }

 private:
  int64_t size_, block_;
};

// Every two of `players` meet once, and nobody plays twice in a round (the circle method). With an odd number of
// players the one who is paired with the index `players` sits the round out.
class Tournament {
 public:
  explicit Tournament(int64_t players) : seats_(players + players % 2) {}
  int64_t rounds() const { return seats_ - 1; }
  int64_t games() const { return seats_ / 2; }
  std::pair<int64_t, int64_t> game(int64_t round, int64_t index) const {
    const int64_t circle = seats_ - 1;
    if (index == 0) return {round, circle};
    return {(round + index) % circle, (round + circle - index) % circle};
  }

 private:
  int64_t seats_;
};

class SymmetricSchedule {
 public:
  explicit SymmetricSchedule(const Blocks& blocks)
      : blocks_(blocks), team_size_((blocks.count() + kTeams - 1) / kTeams) {}

  // Calls visit(I, J, true) once for every two blocks I != J, and visit(I, I, false) once for every block.
  template <class Visit>
  void run(const Parallel& parallel, const Visit& visit) const {
    const int64_t games = teams_.games();
    for (int64_t round = 0; round < teams_.rounds(); ++round) {
      const int64_t turns = round == 0 ? team_size_ + inside_.rounds() + 1 : team_size_;
      if (parallel.threads() <= games) {
        parallel(games, 1, [&](int64_t begin, int64_t end) {
          for (int64_t game = begin; game < end; ++game) {
            for (int64_t turn = 0; turn < turns; ++turn) {
              for (int64_t lane = 0; lane < lanes(turn); ++lane) play(round, game, turn, lane, visit);
            }
          }
        });
        continue;
      }
      for (int64_t turn = 0; turn < turns; ++turn) {
        parallel(games * lanes(turn), 1, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) play(round, i % games, turn, i / games, visit);
        });
      }
    }
  }

 private:
  static constexpr int64_t kTeams = 4;

  // First the turns of team against team; in round 0, where every team has a game, then those within both teams, and
  // last every block by itself. A turn has this many lanes for each pair of teams: visits that share no block.
  int64_t lanes(int64_t turn) const {
    if (turn < team_size_) return team_size_;
    return 2 * (turn < team_size_ + inside_.rounds() ? inside_.games() : team_size_);
  }

  template <class Visit>
  void play(int64_t round, int64_t game, int64_t turn, int64_t lane, const Visit& visit) const {
    const auto [a, b] = teams_.game(round, game);
    if (turn < team_size_) return meet(a, lane, b, (lane + turn) % team_size_, visit);
    const int64_t half = lanes(turn) / 2, team = lane < half ? a : b, index = lane % half;
    if (turn < team_size_ + inside_.rounds()) {
      const auto [i, j] = inside_.game(turn - team_size_, index);
      if (i < team_size_ && j < team_size_) meet(team, i, team, j, visit);
    } else if (const int64_t i = team * team_size_ + index; i < blocks_.count()) {
      visit(blocks_[i], blocks_[i], false);
    }
  }

  template <class Visit>
  void meet(int64_t team_a, int64_t a, int64_t team_b, int64_t b, const Visit& visit) const {
    const int64_t i = team_a * team_size_ + a, j = team_b * team_size_ + b;
    if (i < blocks_.count() && j < blocks_.count()) visit(blocks_[i], blocks_[j], true);
  }

  Blocks blocks_;
  int64_t team_size_;
  Tournament teams_{kTeams}, inside_{team_size_};
};

}  // namespace simclr::cpu
