(* T04 (a), (b), (e). Fixed points of the iteration on any set; on a grid, coordinate descent stops at better points. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From awp Require Import matrix_forms T02.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section FixedPoints.
Variables (R : realFieldType) (m n : nat) (W : 'M[R]_(m, n)) (C : 'M[R]_n) (S : 'M[R]_(m, n) -> Prop).
Hypothesis symC : symmetric C.
Local Notation f := (objective W C).
Local Notation g := (gradient W C).
Definition fixed eta T := pgd_step W C S eta T T.

(* (a) *)
Theorem fixedP eta T : fixed eta T <-> S T /\ forall U, S U -> 0 <= 2%:R * eta * dot (g T) (U - T) + sqnorm (U - T).
Proof.
have split U : sqnorm (T - eta *: g T - U) - sqnorm (T - eta *: g T - T)
  = 2%:R * eta * dot (g T) (U - T) + sqnorm (U - T).
  have -> : T - eta *: g T - U = - ((U - T) + eta *: g T) by apply/matrixP => i j; rewrite !mxE; ring.
  have -> : T - eta *: g T - T = - (eta *: g T) by apply/matrixP => i j; rewrite !mxE; ring.
  by rewrite !sqnormN sqnormD dotZr (dotC (g T)); ring.
by split=> -[ST near]; split=> // U SU; move: (near _ SU); rewrite -split subr_ge0.
Qed.

Corollary fixed_smaller eta eta' T : 0 < eta -> eta <= eta' -> fixed eta' T -> fixed eta T.
Proof.
move=> eta_gt0 le /fixedP[ST pos]; apply/fixedP; split=> // U /pos; move: (dot _ _) (sqnorm_ge0 (U - T)) => a s0 pos'.
have [a0 | /ltW a0] := leP 0 a; first by rewrite addr_ge0 ?mulr_ge0 ?ler0n // ltW.
by apply: le_trans pos' _; rewrite ler_add2r ler_wnmul2r // ler_pmul2l ?ltr0n.
Qed.

(* (b) *)
Theorem minimiser_fixed eta L T : 0 < eta -> eig_le C L -> eta * L <= 1 -> S T -> (forall U, S U -> f T <= f U) ->
  fixed eta T.
Proof.
move=> eta_gt0 L_bound le1 ST least; apply/fixedP; split=> // U /least.
have -> : f U = f (T + (U - T)) by rewrite addrC subrK.
rewrite objectiveD // -addrA ler_addl => pos.
have up : eta * form C (U - T) <= sqnorm (U - T).
  apply: le_trans (_ : eta * (L * sqnorm (U - T)) <= _); first by rewrite ler_pmul2l // form_le // => i; apply: L_bound.
  by rewrite mulrA ler_pimull ?sqnorm_ge0.
apply: le_trans (_ : 0 <= 2%:R * eta * (dot (g T) (U - T) + form C (U - T) / 2%:R)) _;
  first by rewrite !mulr_ge0 ?ler0n // ltW.
rewrite mulrDr ler_add2l; apply: le_trans up; rewrite le_eqVlt; apply/orP; left; apply/eqP; by field.
Qed.
End FixedPoints.

(* (e) Evenly spaced values lo + s c, c = 0, ..., top, at every position. *)
Section Grid.
Variables (R : realFieldType) (m n : nat) (W : 'M[R]_(m, n)) (C : 'M[R]_n).
Variables (lo s : 'I_m -> 'I_n -> R) (top : 'I_m -> 'I_n -> nat).
Hypotheses (symC : symmetric C) (s_gt0 : forall i j, 0 < s i j).
Local Notation f := (objective W C).
Local Notation g := (gradient W C).

Definition has_codes (c : 'I_m -> 'I_n -> nat) (T : 'M[R]_(m, n)) :=
  forall i j, (c i j <= top i j)%N /\ T i j = lo i j + s i j * (c i j)%:R.
Definition grid T := exists c, has_codes c T.
(* T but for one entry *)
Definition change (T : 'M[R]_(m, n)) i j (v : R) : 'M[R]_(m, n) := T + (v - T i j) *: delta_mx i j.
(* No other value of one entry has a smaller f. *)
Definition coordinate_minimal (T : 'M[R]_(m, n)) := forall i j v, grid (change T i j v) -> f T <= f (change T i j v).

(* In one entry both conditions have the shape: a x s <= b s^2 / 2 at the neighbouring codes. *)
Lemma neighbours (a b x : R) (c K : nat) : 0 < x -> 0 <= b -> (c <= K)%N ->
  (forall c', (c' <= K)%N -> 0 <= a * (x * (c'%:R - c%:R)) + b / 2%:R * (x * (c'%:R - c%:R)) ^+ 2) <->
  ((0 < c)%N -> a <= b * x / 2%:R) /\ ((c < K)%N -> - a <= b * x / 2%:R).
Proof.
move=> x0 b0 cK; split=> [all | [down up] c' c'K].
  split=> [c_gt0 | c_lt].
    have := all c.-1 (leq_trans (leq_pred c) cK); rewrite -{2 4}(prednK c_gt0) -addn1 natrD.
    have -> : a * (x * (c.-1%:R - (c.-1%:R + 1%:R))) + b / 2%:R * (x * (c.-1%:R - (c.-1%:R + 1%:R))) ^+ 2
      = x * (b * x / 2%:R - a) by field.
    by rewrite pmulr_rge0 // subr_ge0.
  have := all c.+1 c_lt; rewrite -addn1 natrD.
  have -> : a * (x * (c%:R + 1%:R - c%:R)) + b / 2%:R * (x * (c%:R + 1%:R - c%:R)) ^+ 2
    = x * (b * x / 2%:R - - a) by field.
  by rewrite pmulr_rge0 // subr_ge0.
have bound e (k : nat) : e <= b * x / 2%:R -> (0 < k)%N -> 0 <= - e * (x * k%:R) + b / 2%:R * (x * k%:R) ^+ 2.
  move=> le k_gt0; have -> : - e * (x * k%:R) + b / 2%:R * (x * k%:R) ^+ 2
    = x * k%:R * ((b * x / 2%:R - e) + b * x / 2%:R * (k%:R - 1)) by field.
  apply: mulr_ge0; first by rewrite mulr_ge0 ?ler0n // ltW.
  apply: addr_ge0; first by rewrite subr_ge0.
  by rewrite mulr_ge0 ?divr_ge0 ?mulr_ge0 ?ler0n ?subr_ge0 ?ler1n // ltW.
have [lt | gt | ->] := ltngtP c' c; last by rewrite subrr mulr0 expr0n !mulr0 addr0.
  have := bound a (c - c')%N (down (leq_ltn_trans (leq0n c') lt)); rewrite subn_gt0 lt natrB ?(ltnW lt) // => /(_ isT).
  by congr (0 <= _); ring.
have := bound (- a) (c' - c)%N (up (leq_trans gt c'K)); rewrite subn_gt0 gt natrB ?(ltnW gt) // => /(_ isT).
by congr (0 <= _); ring.
Qed.

Definition half_step_rule (b : 'I_m -> 'I_n -> R) c T := forall i j,
  ((0 < c i j)%N -> g T i j <= b i j * s i j / 2%:R) /\ ((c i j < top i j)%N -> - g T i j <= b i j * s i j / 2%:R).

Lemma changed T c i j c' : has_codes c T -> (c' <= top i j)%N ->
  grid (change T i j (lo i j + s i j * c'%:R)) /\ lo i j + s i j * c'%:R - T i j = s i j * (c'%:R - (c i j)%:R).
Proof.
move=> codes c'K; split; last by have [_ ->] := codes i j; ring.
exists (fun k l => if (k == i) && (l == j) then c' else c k l) => k l; rewrite !mxE.
by have [_ eqT] := codes k l; case: ifP => [/andP[/eqP -> /eqP ->] | _]; rewrite ?mulr1 ?mulr0 ?addr0; split=> //;
  [rewrite addrC subrK | case: (codes k l)].
Qed.

Lemma dot_delta (A : 'M[R]_(m, n)) i j : dot A (delta_mx i j) = A i j.
Proof.
rewrite dotE (bigD1 i) //= (bigD1 j) //= !mxE !eqxx mulr1 !big1 ?addr0 // => [k /negbTE nk | l /negbTE nl].
  by rewrite big1 // => l _; rewrite mxE nk mulr0.
by rewrite mxE nl andbF mulr0.
Qed.

Lemma form_delta i j : form C (delta_mx i j : 'M[R]_(m, n)) = C j j.
Proof.
rewrite form_dot dot_delta mxE (bigD1 j) //= big1 => [|l /negbTE nl]; last by rewrite mxE nl andbF mul0r.
by rewrite mxE !eqxx mul1r addr0.
Qed.

Lemma scaled (eta a d : R) : 0 < eta -> (0 <= 2%:R * eta * (d * a) + d ^+ 2) = (0 <= a * d + eta^-1 / 2%:R * d ^+ 2).
Proof.
move=> eta_gt0; rewrite -[RHS](pmulr_rge0 _ (_ : 0 < 2%:R * eta)) ?mulr_gt0 ?ltr0n //; congr (0 <= _).
by field; rewrite gt_eqF.
Qed.

Theorem grid_fixedP eta c T : 0 < eta -> has_codes c T ->
  fixed W C grid eta T <-> half_step_rule (fun _ _ => eta^-1) c T.
Proof.
move=> eta_gt0 codes; split=> [/fixedP[_ pos] i j | rule].
  apply/neighbours => //; [by rewrite invr_ge0 ltW | by case: (codes i j) | move=> c' c'K].
  have [/pos + diff] := changed codes c'K.
  have -> : change T i j (lo i j + s i j * c'%:R) - T = (s i j * (c'%:R - (c i j)%:R)) *: delta_mx i j.
    by rewrite /change addrAC subrr add0r diff.
  rewrite dotZr dot_delta sqnormZ.
  have -> : sqnorm (delta_mx i j : 'M[R]_(m, n)) = 1 by rewrite /sqnorm dot_delta mxE !eqxx.
  by move: (s i j * _) (g T i j) => d a; rewrite mulr1 scaled.
apply/fixedP; split=> [|U [c' codes']]; first by exists c.
rewrite dotE sqnormE mulr_sumr -big_split /= sumr_ge0 // => i _; rewrite mulr_sumr -big_split /= sumr_ge0 // => j _.
have [cK eqT] := codes i j; have [c'K eqU] := codes' i j.
have := (neighbours (g T i j) (s_gt0 i j) (ltW (_ : 0 < eta^-1)) cK).2 (rule i j) (c' i j) c'K;
  rewrite invr_gt0 => /(_ eta_gt0).
have -> : (U - T) i j = s i j * ((c' i j)%:R - (c i j)%:R) by rewrite !mxE eqT eqU; ring.
by move: (s i j * _) (g T i j) => d a; rewrite [a * d in X in _ -> X]mulrC scaled.
Qed.

Hypothesis diag_ge0 : forall j, 0 <= C j j.

Lemma objective_change T i j v : f (change T i j v) - f T = g T i j * (v - T i j) + C j j / 2%:R * (v - T i j) ^+ 2.
Proof.
rewrite /change objectiveD // dotZr dot_delta formZ form_delta.
by move: (f T) (g T i j) (C j j) (v - T i j) => a b c d; field.
 Qed.

Theorem coordinate_minimalP c T : has_codes c T ->
  coordinate_minimal T <-> half_step_rule (fun _ j => C j j) c T.
Proof.
move=> codes; split=> [least i j | rule i j v [c' codes']].
  apply/neighbours => //; [by case: (codes i j) | move=> c' c'K].
  by have [/least + diff] := changed codes c'K; rewrite -(subr_ge0 (f T)) objective_change diff.
rewrite -subr_ge0 objective_change; have [cK eqT] := codes i j; have [c'K eqv] := codes' i j.
have -> : v - T i j = s i j * ((c' i j)%:R - (c i j)%:R).
  have -> : v = change T i j v i j by rewrite /change !mxE !eqxx mulr1 addrC subrK.
  by rewrite eqv eqT; ring.
have [_] := neighbours (g T i j) (s_gt0 i j) (diag_ge0 j) cK.
by move/(_ (rule i j)); apply.
Qed.

(* Where coordinate descent stops, the iteration does not move either. *)
Corollary coordinate_minimal_fixed eta T : 0 < eta -> (forall j, eta * C j j <= 1) -> grid T -> coordinate_minimal T ->
  fixed W C grid eta T.
Proof.
move=> eta_gt0 short [c codes] /(coordinate_minimalP codes) rule; apply/(grid_fixedP eta_gt0 codes) => i j.
have [down up] := rule i j.
have le : C j j * s i j / 2%:R <= eta^-1 * s i j / 2%:R.
  by rewrite ler_pmul2r ?invr_gt0 ?ltr0n // ler_pmul2r // -(ler_pmul2l eta_gt0) mulfV ?gt_eqF.
by split=> [/down | /up] h; apply: le_trans h le.
Qed.
End Grid.
